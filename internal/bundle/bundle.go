// Package bundle holds the upstream programs that a machine runs, so that one
// binary is all there is to copy. They are compressed into our own program
// (build tag bundled) or, while developing, files in a directory; before use
// they are unpacked once into a directory named by what they are, and checked
// at each start. Which versions they have is decided in upstream/*/go.mod.
package bundle

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"kuorum/internal/cluster"
)

// Bundle is a set of programs and images, and where to read them. It is
// read-only and may be used by several goroutines.
type Bundle struct {
	Manifest Manifest
	// Origin names the place for people: "built in", or a directory.
	Origin string

	digest string
	open   func(Part) (io.ReadCloser, error)
}

// Open returns the bundle that is built into this program or else that of the
// first of dirs which has one. An empty name is passed over. Without any, the
// error is a *cluster.Problem that tells how to get one.
func Open(dirs ...string) (*Bundle, error) { return open(embedded(), dirs) }

func open(builtIn fs.FS, dirs []string) (*Bundle, error) {
	if builtIn != nil {
		return packed(builtIn, "built in")
	}
	var tried []string
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		b, err := directory(dir)
		if !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
		tried = append(tried, dir)
	}
	p := &cluster.Problem{What: "no bundle of Kubernetes programs", Why: "this kuorum was built without one", Do: "make bundle build"}
	if len(tried) > 0 {
		p.Why += " and there is none in " + strings.Join(tried, " or ")
	}
	return nil, p
}

// PackedName is the file in which a bundle that is built in keeps a part:
// compressed by zstd.
func PackedName(p Part) string { return path.Base(p.File) + ".zst" }

// packed reads a bundle of compressed parts.
func packed(files fs.FS, origin string) (*Bundle, error) {
	return read(files, origin, func(p Part) (io.ReadCloser, error) {
		f, err := files.Open(PackedName(p))
		if err != nil {
			return nil, err
		}
		d, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return decoded{d, f}, nil
	})
}

// directory reads a bundle of plain files.
func directory(dir string) (*Bundle, error) {
	files := os.DirFS(dir)
	return read(files, dir, func(p Part) (io.ReadCloser, error) { return files.Open(p.File) })
}

func read(files fs.FS, origin string, open func(Part) (io.ReadCloser, error)) (*Bundle, error) {
	data, err := fs.ReadFile(files, ManifestName)
	if err != nil {
		return nil, fmt.Errorf("cannot open the bundle (%s): %w", origin, err)
	}
	m, err := ParseManifest(data)
	if err != nil {
		return nil, fmt.Errorf("cannot open the bundle (%s): %w", origin, err)
	}
	digest, err := m.Digest()
	if err != nil {
		return nil, err
	}
	return &Bundle{Manifest: m, Origin: origin, digest: digest, open: open}, nil
}

// decoded closes the decoder and what it reads from.
type decoded struct {
	*zstd.Decoder
	file fs.File
}

func (d decoded) Close() error {
	d.Decoder.Close()
	return d.file.Close()
}
