// Package ledger is an account on disk: records in JSON, one a line, that are only
// ever added at the end.
package ledger

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"kuorum/internal/host"
)

// mode is that of the file: an account is root's own.
const mode = 0o600

// File is an account of records of one kind. Its methods may be called from several
// goroutines. One process may add to it; others may read it meanwhile.
type File[T any] struct {
	path string
	keep int

	mu    sync.Mutex
	lines int // in the file; -1: not known, and its end may be half a line
}

// New is the account at path, which need not exist. It keeps at least so many of the
// last records, and a quarter more at most; 0: all of them. It does not touch the
// disk.
func New[T any](path string, keep int) *File[T] { return &File[T]{path: path, keep: keep, lines: -1} }

// Add writes a record down. It is on the disk when Add returns. After an error it is
// not in the account, and those before are.
func (f *File[T]) Add(record T) error {
	line, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("cannot write a record: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	lines, err := f.add(append(line, '\n'))
	if err != nil {
		f.lines = -1
		return fmt.Errorf("cannot add to %s: %w", f.path, err)
	}
	f.lines = lines
	return nil
}

// add returns how many lines there are then.
func (f *File[T]) add(line []byte) (int, error) {
	if f.lines < 0 || f.keep > 0 && f.lines >= f.keep+f.keep/4 {
		return f.rewrite(line)
	}
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrNotExist) {
		return f.rewrite(line) // somebody has removed it
	}
	if err != nil {
		return 0, err
	}
	_, err = file.Write(line)
	return f.lines + 1, errors.Join(err, file.Sync(), file.Close())
}

// rewrite replaces the file by its last whole lines and one more.
func (f *File[T]) rewrite(line []byte) (int, error) {
	lines, err := f.read()
	if err != nil {
		return 0, err
	}
	if extra := len(lines) + 1 - f.keep; f.keep > 0 && extra > 0 {
		lines = lines[extra:]
	}
	lines = append(lines, line)
	return len(lines), host.WriteFile(f.path, bytes.Join(lines, nil), mode)
}

// read returns the whole lines. Half a line is what a power cut, a full disk, or one
// who writes at this moment has left.
func (f *File[T]) read() ([][]byte, error) {
	data, err := os.ReadFile(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var lines [][]byte
	for line := range bytes.Lines(data) {
		if bytes.HasSuffix(line, []byte("\n")) && json.Valid(line) {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// All reads the account, the oldest record first. What cannot be read as a record is
// passed over. A file that does not exist is an empty account.
func (f *File[T]) All() ([]T, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lines, err := f.read()
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", f.path, err)
	}
	var records []T
	for _, line := range lines {
		var record T
		if json.Unmarshal(line, &record) == nil {
			records = append(records, record)
		}
	}
	return records, nil
}
