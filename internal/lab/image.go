package lab

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"kuorum/internal/cluster"
)

// CheckImage reads an image archive to its end and refuses one that is cut
// short or damaged, before any machine has seen it. OCI archives
// (oci-layout, index.json) and docker's (manifest.json) are accepted, plain or
// compressed with gzip.
func CheckImage(file string) error {
	if err := checkImage(file); err != nil {
		return &cluster.Problem{
			What: "cannot import " + file, Err: err,
			Do: "make the archive again, for example with: docker save -o " + path.Base(file) + " IMAGE",
		}
	}
	return nil
}

func checkImage(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	in, err := uncompressed(f)
	if err != nil {
		return err
	}
	known, err := readArchive(in)
	if err != nil {
		return err
	}
	if !known {
		return errors.New("it is no image archive: it holds neither index.json (OCI) nor manifest.json (docker)")
	}
	return nil
}

// readArchive reads in to its end and tells whether it holds an index of images.
func readArchive(in io.Reader) (known bool, err error) {
	last := &lastBlock{in: in}
	archive := tar.NewReader(last)
	entries := 0
	for ; ; entries++ {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && entries == 0 {
			return false, fmt.Errorf("it is no archive of tar, plain or compressed with gzip: %w", err)
		}
		if err != nil {
			return false, fmt.Errorf("the archive is cut short or damaged: %w", err)
		}
		if err := checkEntry(header, archive); err != nil {
			return false, err
		}
		name := path.Clean(header.Name)
		known = known || name == "index.json" || name == "manifest.json"
	}
	// A tar cut between two files reads like a whole one, but for the blocks of
	// zeros that end it; gzip's checksum comes after those.
	if entries > 0 && last.block != [512]byte{} {
		return false, errors.New("the archive is cut short: its end is missing")
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return false, fmt.Errorf("the archive is cut short or damaged: %w", err)
	}
	return known, nil
}

// lastBlock is a reader that remembers the last 512 bytes it gave.
type lastBlock struct {
	in    io.Reader
	block [512]byte
}

func (l *lastBlock) Read(p []byte) (int, error) {
	n, err := l.in.Read(p)
	if n >= len(l.block) {
		copy(l.block[:], p[n-len(l.block):n])
		return n, err
	}
	copy(l.block[:], l.block[n:])
	copy(l.block[len(l.block)-n:], p[:n])
	return n, err
}

func uncompressed(f *os.File) (io.Reader, error) {
	in := bufio.NewReaderSize(f, 1<<20)
	magic, err := in.Peek(2)
	if err != nil {
		return nil, errors.New("it is empty")
	}
	if magic[0] != 0x1f || magic[1] != 0x8b {
		return in, nil
	}
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	return z, nil
}

// checkEntry reads one file of the archive; a blob must have the digest that
// its name says.
func checkEntry(header *tar.Header, content io.Reader) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, content); err != nil {
		return fmt.Errorf("the archive is cut short or damaged in %s: %w", header.Name, err)
	}
	digest, blob := strings.CutPrefix(path.Clean(header.Name), "blobs/sha256/")
	if !blob || header.Typeflag != tar.TypeReg {
		return nil
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fmt.Errorf("the archive is damaged: blob %.12s has the content of %.12s", digest, got)
	}
	return nil
}

// ImportImage gives a checked archive to one machine's containerd. It returns
// the names of the images that were in it.
func (l *Lab) ImportImage(ctx context.Context, machine MachineStatus, file string) ([]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("cannot open the archive: %w", err)
	}
	defer f.Close()
	var out, talk strings.Builder
	err = machine.run(ctx, command{
		argv:  []string{programPath, "ctr", "images", "import", "-"},
		stdin: f, stdout: &out, stderr: &talk,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot import %s on %s: %w: %s", file, machine.Name, err, strings.TrimSpace(talk.String()))
	}
	return savedImages(out.String()), nil
}

// savedImages picks the names out of what ctr prints: progress, a digest, and
// "NAME saved" for each image.
func savedImages(said string) []string {
	var names []string
	for line := range strings.Lines(said) {
		if words := strings.Fields(line); len(words) == 2 && words[1] == "saved" {
			names = append(names, words[0])
		}
	}
	return names
}
