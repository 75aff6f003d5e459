package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"kuorum/internal/host"
	"kuorum/internal/pki"
)

// pendingFile has the files of a Write that was interrupted.
const pendingFile = "pending.json"

// pending is one file on its way.
type pending struct {
	Path string      `json:"path"`
	Data []byte      `json:"data"`
	Mode fs.FileMode `json:"mode"`
}

type writeFunc func(path string, data []byte, mode fs.FileMode) error

// Write replaces files below dir as one: a certificate and its key, or an
// authority and all that it has signed. They are written down together first; a
// machine that loses its power after that has them once Finish has run. Until
// Write returns a reader may see some new and some old.
func Write(dir string, files []pki.File) error { return write(dir, files, host.WriteFile) }

func write(dir string, files []pki.File, put writeFunc) error {
	if len(files) == 0 {
		return nil
	}
	var all []pending
	for _, f := range files {
		all = append(all, pending{Path: f.Path, Data: f.Data, Mode: f.Mode})
	}
	data, err := json.Marshal(all)
	if err != nil {
		return fmt.Errorf("cannot write the node's certificates: %w", err)
	}
	if err := put(filepath.Join(dir, pendingFile), data, 0o600); err != nil {
		return err
	}
	return finish(dir, put)
}

// Finish completes a Write that was interrupted. Call it before the files are
// read, when nobody writes.
func Finish(dir string) error { return finish(dir, host.WriteFile) }

func finish(dir string, put writeFunc) error {
	path := filepath.Join(dir, pendingFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot complete the node's certificates: %w", err)
	}
	var all []pending
	if err := json.Unmarshal(data, &all); err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	for _, f := range all {
		if !filepath.IsLocal(f.Path) {
			return fmt.Errorf("cannot read %s: %q is no path below %s", path, f.Path, dir)
		}
		if err := put(filepath.Join(dir, f.Path), f.Data, f.Mode); err != nil {
			return err
		}
	}
	// A removal may be forgotten in a power cut, and the keys would be put back
	// over later ones: an empty list is not forgotten.
	if err := put(path, []byte("[]\n"), 0o600); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("cannot complete the node's certificates: %w", err)
	}
	return nil
}
