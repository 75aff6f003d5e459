package doctor

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"kuorum/internal/host"
)

// Bounds of what is taken of a file: its last lines, and its last bytes.
const (
	supportLines = 2000
	supportBytes = 4 << 20
	keyLines     = 500 // more than the longest key in PEM has
)

// Source is files of one machine that may leave it.
type Source struct {
	Name string // directory in the archive, such as "nodes/cp1"
	Root string // directory that stands for the machine's /; nothing outside of it is read
	// Files are all that is read, by their path below Root: an allow list, in
	// which * stands for a part of one name.
	Files []string
}

// Document is what was written for the archive itself.
type Document struct {
	Name string
	Data []byte
}

// WriteSupport writes an archive (tar, gzip, mode 0600) of documents and of
// what the sources have of their files: the last 2000 lines of each. Every
// line that looks like a secret is replaced, in all of them. What
// cannot be read is listed in the archive's README, with how many lines were
// replaced. It returns how many files are in it.
func WriteSupport(file string, documents []Document, sources []Source, now time.Time) (int, error) {
	a := &archive{filter: newFilter(), time: now}
	zip := gzip.NewWriter(&a.out)
	a.tar = tar.NewWriter(zip)
	for _, d := range documents {
		if err := a.add(d.Name, d.Data); err != nil {
			return 0, err
		}
	}
	for _, s := range sources {
		if err := a.addSource(s); err != nil {
			return 0, err
		}
	}
	if err := a.write("README", a.readme()); err != nil {
		return 0, err
	}
	if err := errors.Join(a.tar.Close(), zip.Close()); err != nil {
		return 0, fmt.Errorf("cannot pack %s: %w", file, err)
	}
	return a.files, host.WriteFile(file, a.out.Bytes(), 0o600)
}

type archive struct {
	out    bytes.Buffer
	tar    *tar.Writer
	filter *filter
	time   time.Time
	files  int
	notes  bytes.Buffer // what the README says
}

func (a *archive) readme() []byte {
	return append([]byte(`What kuorum doctor --support has packed: status, checks, versions, configuration and logs.
No key, no kubeconfig, no token and no audit log is meant to be here; lines that looked like one
are replaced by "`+removedLine+`". Look before you pass it on: logs name machines, pods and addresses.

`), a.notes.Bytes()...)
}

// addSource reads through a root that symbolic links cannot leave: the
// machines of a lab are not trusted with the host's files.
func (a *archive) addSource(s Source) error {
	root, err := os.OpenRoot(s.Root)
	if err != nil {
		fmt.Fprintf(&a.notes, "%s: %v\n", s.Name, err)
		return nil
	}
	defer func() { _ = root.Close() }() // it was only read
	for _, pattern := range s.Files {
		found, err := fs.Glob(root.FS(), pattern)
		if err != nil {
			return fmt.Errorf("cannot pack %s: %w", pattern, err)
		}
		if len(found) == 0 {
			fmt.Fprintf(&a.notes, "%s: there is no %s\n", s.Name, pattern)
		}
		for _, name := range found {
			data, err := readEnd(root, name)
			if err != nil {
				fmt.Fprintf(&a.notes, "%s: %v\n", s.Name, err)
				continue
			}
			if err := a.add(path.Join(s.Name, name), data); err != nil {
				return err
			}
		}
	}
	return nil
}

// readEnd is the end of a regular file.
func readEnd(root *os.Root, name string) ([]byte, error) {
	before, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() { // opening a pipe would wait
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if before.Size() > supportBytes {
		if _, err := f.Seek(-supportBytes, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, supportBytes)) // of /proc as well, whose files have size 0
}

// add cleans before it cuts to size: the cut must not take the begin of a key,
// which has fewer than keyLines.
func (a *archive) add(name string, data []byte) error {
	clean, removed := a.filter.clean(lastLines(data, supportLines+keyLines))
	if removed > 0 {
		fmt.Fprintf(&a.notes, "%s: %d lines were replaced\n", name, removed)
	}
	return a.write(name, lastLines(clean, supportLines))
}

func (a *archive) write(name string, data []byte) error {
	header := &tar.Header{Name: path.Join("kuorum-support", name), Mode: 0o600, Size: int64(len(data)), ModTime: a.time, Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(header); err != nil {
		return fmt.Errorf("cannot pack %s: %w", name, err)
	}
	if _, err := a.tar.Write(data); err != nil {
		return fmt.Errorf("cannot pack %s: %w", name, err)
	}
	a.files++
	return nil
}

// lastLines is the end of data, of which the last line may be unfinished.
func lastLines(data []byte, lines int) []byte {
	at := len(bytes.TrimSuffix(data, []byte("\n")))
	for range lines {
		at = bytes.LastIndexByte(data[:at], '\n')
		if at < 0 {
			return data
		}
	}
	return data[at+1:]
}
