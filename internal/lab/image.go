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
	known := false
	archive := tar.NewReader(in)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("the archive is cut short or damaged: %w", err)
		}
		if err := checkEntry(header, archive); err != nil {
			return err
		}
		name := path.Clean(header.Name)
		known = known || name == "index.json" || name == "manifest.json"
	}
	if !known {
		return errors.New("it is no image archive: it holds neither index.json (OCI) nor manifest.json (docker)")
	}
	// A tar cut at a header ends like a whole one; what follows the last
	// entry must be at least the two zero blocks, which Next has read.
	return nil
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
// the lines that ctr printed: an image a line.
func (l *Lab) ImportImage(ctx context.Context, machine MachineStatus, file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("cannot open the archive: %w", err)
	}
	defer f.Close()
	var out strings.Builder
	err = machine.run(ctx, command{
		argv:  []string{programPath, "ctr", "images", "import", "-"},
		stdin: f, stdout: &out, stderr: &out,
	})
	if err != nil {
		return "", fmt.Errorf("cannot import %s on %s: %w: %s", file, machine.Name, err, strings.TrimSpace(out.String()))
	}
	return strings.TrimSpace(out.String()), nil
}
