package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

// fewest is the number of voters from which on old data is refused. One voter has
// nobody to get a new copy from: who puts an old one back there restores it. Of
// two, the other has all that was acknowledged, and no leader is elected without it;
// and without both of them the member could not be replaced.
const fewest = 3

// Mark says that a member once had entries up to Index on its disk, all of which
// a quorum had agreed on.
type Mark struct {
	Cluster string    `json:"cluster"` // ID, hexadecimal, as etcdctl prints it
	Member  string    `json:"member"`  // ID
	Index   uint64    `json:"index"`
	At      time.Time `json:"at"` // when it was seen, by the clock of its node
}

// ReadMark reads what WriteMark has written; a Mark of nobody where nothing is.
func ReadMark(path string) (Mark, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Mark{}, nil
	}
	if err != nil {
		return Mark{}, fmt.Errorf("cannot read how far etcd was: %w", err)
	}
	var m Mark
	if err := json.Unmarshal(data, &m); err != nil {
		return Mark{}, fmt.Errorf("cannot read how far etcd was in %s: %w", path, err)
	}
	return m, nil
}

// WriteMark replaces the mark at path. It must be outside of the data directory, or
// it would be put back together with it.
func WriteMark(path string, m Mark) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return host.WriteFile(path, append(data, '\n'), 0o600)
}

// Check compares where a log ends with where its member is known to have been.
// It returns the furthest mark that is beyond the end, or nil: then etcd may start.
// Marks of other members and other clusters do not count: a member that was replaced
// has another ID. voters is how many the cluster has; with one or two nothing is old.
func Check(last Position, marks []Mark, voters int) *cluster.OldData {
	if voters < fewest {
		return nil
	}
	var old *cluster.OldData
	for _, m := range marks {
		if m.Cluster != hex(last.Cluster) || m.Member != hex(last.Member) || m.Index <= last.Index {
			continue
		}
		if old == nil || m.Index > old.Had {
			old = &cluster.OldData{Has: last.Index, Had: m.Index, At: m.At}
		}
	}
	return old
}

// hex is an ID as etcdctl prints it.
func hex(id uint64) string { return strconv.FormatUint(id, 16) }

// Saved tells which entries a member that runs has on its disk for certain.
//
// What it calls committed need not be there yet: etcd tells of it when raft hands it
// over, and writes the entries of that same batch after that. It takes the next
// batch only when it has written this one. So once the committed index has moved
// on, all up to the earlier one was written, and flushed, since etcd flushes
// whenever it writes entries or a snapshot. That holds within the life of one
// process: what the next one calls committed may have come in a single batch. Committed
// entries are never replaced, so that no later log is rightly shorter.
type Saved struct {
	process int
	last    uint64
}

// See notes the committed index of the member, as its process (a PID) told it, and
// returns the index up to which it has saved everything; false: nothing new is known.
func (s *Saved) See(process int, committed uint64) (uint64, bool) {
	before := *s
	*s = Saved{process: process, last: committed}
	if before.process != process || before.last == 0 || committed <= before.last {
		return 0, false
	}
	return before.last, true
}
