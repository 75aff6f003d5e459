// Package datadir is the data directory of an etcd member as it lies on disk: how
// far its log goes, and whether that is as far as the member is known to have been.
// A member that starts from an older copy of its own data has forgotten what it
// acknowledged, and raft counts on it all the same (ADR 0025). It reads only, and
// asks no process.
package datadir

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// ErrNoData says that no member has ever started in a directory.
var ErrNoData = errors.New("there is no data of an etcd member")

// Position is where the log of a member ends. Entries up to Index are on its disk,
// or in a snapshot there.
type Position struct {
	Cluster, Member uint64 // IDs
	Index, Term     uint64 // of the last entry
}

// walName is a file of the log: its number, and the index of the first entry that it
// was made for. Others, such as *.tmp and *.wal.broken, etcd leaves alone as well.
var walName = regexp.MustCompile(`^[0-9a-f]{16}-[0-9a-f]{16}\.wal$`)

// Last reads where the log in a member's data directory (--data-dir) ends, as etcd 3.6
// will find it at its next start: without what was not written to its end, which was
// never acknowledged. It reads one file of 64 MiB, or as many as it takes to find
// an entry, and needs memory for a record. ErrNoData means that there is no log. Any
// other error means that the position is not known: etcd checks its files itself,
// and says what is wrong with them. A member that runs may be read, too.
func Last(dir string) (Position, error) {
	wal := filepath.Join(dir, "member", "wal")
	names, err := logFiles(wal)
	if err != nil {
		return Position{}, err
	}
	var all log
	for i := len(names) - 1; i >= 0 && !all.hasEntry; i-- {
		found, err := readFile(filepath.Join(wal, names[i]))
		newest := i == len(names)-1
		if err != nil && (!newest || !errors.Is(err, errTorn)) {
			return Position{}, fmt.Errorf("cannot read the log of etcd: %w", err)
		}
		all.precede(found)
	}
	if all.member == 0 {
		return Position{}, fmt.Errorf("cannot read the log of etcd: %s does not say whose it is", wal)
	}
	return all.position(), nil
}

// logFiles are the names of the log's files, the oldest first.
func logFiles(wal string) ([]string, error) {
	entries, err := os.ReadDir(wal) // in the order of names
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoData
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the log of etcd: %w", err)
	}
	var names []string
	for _, e := range entries {
		if walName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return nil, ErrNoData
	}
	return names, nil
}

// log is what the files of a log say that were read.
type log struct {
	cluster, member uint64
	entry, snapshot place
	hasEntry        bool
}

// place is an entry in raft's log.
type place struct{ index, term uint64 }

// precede adds the file before those that were read.
func (l *log) precede(older log) {
	if l.member == 0 {
		l.cluster, l.member = older.cluster, older.member
	}
	if !l.hasEntry {
		l.entry, l.hasEntry = older.entry, older.hasEntry
	}
	if older.snapshot.index > l.snapshot.index {
		l.snapshot = older.snapshot
	}
}

// position is the last entry, or the snapshot that a leader has sent in its place.
// An entry of a lower index than the one before it has replaced it and all behind,
// so that the last one written counts, not the highest.
func (l *log) position() Position {
	end := l.entry
	if l.snapshot.index > end.index {
		end = l.snapshot
	}
	return Position{Cluster: l.cluster, Member: l.member, Index: end.index, Term: end.term}
}

// readFile reads one file of the log. Along with errTorn, as the newest may end, it
// returns what is before that.
func readFile(path string) (log, error) {
	file, err := os.Open(path)
	if err != nil {
		return log{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return log{}, err
	}
	found, err := readLog(bufio.NewReaderSize(file, 256<<10), info.Size())
	if err != nil {
		return found, fmt.Errorf("%s: %w", path, err)
	}
	return found, nil
}

// readLog reads records to the end. Along with an error it returns what was before.
func readLog(in io.Reader, size int64) (log, error) {
	var found log
	records := decoder{in: in, size: size}
	for {
		r, err := records.next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err == nil {
			err = found.add(r)
		}
		if err != nil {
			return found, err
		}
	}
}

// add takes the next record.
func (l *log) add(r record) error {
	switch r.kind {
	case kindMetadata: // etcdserverpb.Metadata
		f, err := numbers(r.data)
		l.member, l.cluster = f[1], f[2]
		return err
	case kindEntry: // raftpb.Entry
		f, err := numbers(r.data)
		l.entry, l.hasEntry = place{index: f[3], term: f[2]}, true
		return err
	case kindSnapshot: // walpb.Snapshot
		f, err := numbers(r.data)
		if f[1] > l.snapshot.index {
			l.snapshot = place{index: f[1], term: f[2]}
		}
		return err
	case kindState, kindCRC:
		return nil
	}
	return fmt.Errorf("a record of the unknown kind %d", r.kind)
}
