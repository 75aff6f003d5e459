package supervise

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"kuorum/internal/host"
)

const (
	lockName     = "agent.lock"
	recordSuffix = ".json"
	launchKey    = "KUORUM_LAUNCH"

	// lockPatience is how long a killed predecessor may take to vanish.
	lockPatience = 2 * time.Second
	// findPatience covers the moment in execve between the end of the old
	// descriptors, and so of the lock, and the new environment in /proc.
	findPatience = 200 * time.Millisecond
)

// record is what the next supervisor must know of a process. One without PID
// was written before a start that may or may not have happened.
type record struct {
	Name        string        `json:"name"`
	Path        string        `json:"path"`
	Digest      string        `json:"digest"`
	Loaded      string        `json:"loaded,omitempty"` // as Reloading.Digest
	Boot        string        `json:"boot"`
	Launch      string        `json:"launch"`
	PID         int           `json:"pid,omitempty"`
	StartTime   uint64        `json:"startTime,omitempty"`
	StopTimeout time.Duration `json:"stopTimeoutNanoseconds"`
}

func (s *Supervisor) newRecord(u *unit) record {
	return record{
		Name: u.Name, Path: u.Path, Digest: u.Digest, Loaded: s.wanted(u), Boot: s.boot,
		Launch: rand.Text(), StopTimeout: u.StopTimeout,
	}
}

// variable marks the process of this very launch.
func (r record) variable() string { return launchKey + "=" + r.Launch }

func (s *Supervisor) recordPath(name string) string {
	return filepath.Join(s.dir, name+recordSuffix)
}

func (s *Supervisor) writeRecord(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("cannot write record of %s: %w", r.Name, err)
	}
	return host.WriteFile(s.recordPath(r.Name), data, 0o600)
}

func (s *Supervisor) removeRecord(name string) error {
	err := os.Remove(s.recordPath(name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// open takes the directory over: it locks it, adopts what runs and ends what
// is not declared any more. The caller must release it.
func (s *Supervisor) open(ctx context.Context) (release func() error, err error) {
	lock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	if s.boot, err = host.BootID(); err == nil {
		err = s.adoptAll(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock.Close, nil
}

// lock waits a little for a predecessor that is just ending.
func (s *Supervisor) lock(ctx context.Context) (io.Closer, error) {
	patience := time.NewTimer(lockPatience)
	defer patience.Stop()
	tick := time.NewTicker(lockPatience / 100)
	defer tick.Stop()
	for {
		lock, err := host.LockExclusive(filepath.Join(s.dir, lockName))
		if !errors.Is(err, host.ErrLocked) {
			return lock, err
		}
		select {
		case <-tick.C:
		case <-patience.C:
			return nil, fmt.Errorf("cannot supervise components: another agent does so already; stop it first: %w", err)
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// adoptAll reads every record. What belongs to a unit is adopted at once, so
// that its end is noticed; what belongs to none is stopped.
func (s *Supervisor) adoptAll(ctx context.Context) error {
	records, err := s.readRecords()
	if err != nil {
		return err
	}
	errs := make([]error, len(records))
	var group sync.WaitGroup
	for i, r := range records {
		group.Go(func() { errs[i] = s.adopt(ctx, r) })
	}
	group.Wait()
	for _, u := range s.units {
		if _, outdated := s.running(u); outdated {
			s.outdate(u)
		}
	}
	return errors.Join(errs...)
}

// readRecords also clears away what a killed supervisor left half-written.
func (s *Supervisor) readRecords() ([]record, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read component records: %w", err)
	}
	var records []record
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".tmp-") {
			if err := os.Remove(filepath.Join(s.dir, entry.Name())); err != nil {
				return nil, fmt.Errorf("cannot clear component records: %w", err)
			}
		}
		name, isRecord := strings.CutSuffix(entry.Name(), recordSuffix)
		if !isRecord {
			continue
		}
		r, err := s.readRecord(name)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

// readRecord returns a record without process, which counts as stale, for a
// file that no supervisor can have written.
func (s *Supervisor) readRecord(name string) (record, error) {
	data, err := os.ReadFile(s.recordPath(name))
	if err != nil {
		return record{}, fmt.Errorf("cannot read record of %s: %w", name, err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.Name != name {
		s.log.Warn("component record is damaged", "component", name, "error", err)
		return record{Name: name}, nil
	}
	return r, nil
}

func (s *Supervisor) adopt(ctx context.Context, r record) error {
	u := s.unit(r.Name)
	if u != nil {
		if c, _ := s.running(u); c != nil && !c.ended() {
			return nil // Held since an earlier Run of this supervisor.
		}
	}
	c, err := s.recover(ctx, r)
	if errors.Is(err, host.ErrGone) {
		return s.removeRecord(r.Name)
	}
	if err != nil {
		return fmt.Errorf("cannot tell whether component %s runs: %w", r.Name, err)
	}
	if u == nil {
		return s.retire(ctx, r, c)
	}
	s.log.Info("component adopted", "component", r.Name, "pid", c.pid, "outdated", r.Digest != u.Digest)
	s.update(u, func() {
		u.child, u.loaded, u.state.Outdated = c, r.Loaded, r.Digest != u.Digest
		u.state.Phase, u.state.PID, u.state.Adopted = PhaseStarting, c.pid, true
	})
	return nil
}

// recover takes hold of the process of a record, or fails with host.ErrGone.
func (s *Supervisor) recover(ctx context.Context, r record) (*child, error) {
	if r.Boot != s.boot {
		return nil, host.ErrGone
	}
	if r.PID != 0 {
		return s.system.adopt(r.PID, r.StartTime)
	}
	patience := time.NewTimer(findPatience)
	defer patience.Stop()
	tick := time.NewTicker(findPatience / 10)
	defer tick.Stop()
	for {
		pid, startTime, err := s.system.find(r.variable())
		if err == nil {
			r.PID, r.StartTime = pid, startTime
			return s.complete(r)
		}
		if !errors.Is(err, host.ErrGone) {
			return nil, err
		}
		select {
		case <-tick.C:
		case <-patience.C:
			return nil, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// complete adopts the process found for an incomplete record and amends it.
func (s *Supervisor) complete(r record) (*child, error) {
	c, err := s.system.adopt(r.PID, r.StartTime)
	if err != nil {
		return nil, err
	}
	if err := s.writeRecord(r); err != nil {
		s.log.Warn("component record is incomplete", "component", r.Name, "error", err)
	}
	return c, nil
}

// retire ends a process that an earlier supervisor kept and this one does not know.
func (s *Supervisor) retire(ctx context.Context, r record, c *child) error {
	s.log.Info("component is not declared any more, stopping it", "component", r.Name, "pid", c.pid)
	if _, err := s.end(ctx, c, r.Name, r.StopTimeout); err != nil {
		return err
	}
	return s.removeRecord(r.Name)
}

// Find looks for the process of a component by its record in dir, which may be
// that of another machine on this computer: its agent need not run. The pid is
// in this process' numbering, while a record has its own machine's. The error
// is host.ErrGone when no such component runs. It reads all of /proc.
func Find(dir, name string) (pid int, startTime uint64, err error) {
	data, err := os.ReadFile(filepath.Join(dir, name+recordSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return 0, 0, fmt.Errorf("cannot find component %s: %w", name, host.ErrGone)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("cannot find component %s: %w", name, err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.Launch == "" {
		return 0, 0, fmt.Errorf("cannot find component %s: its record is damaged: %w", name, host.ErrGone)
	}
	return host.FindLeader(r.variable())
}

// Recorded names the components that have a record in dir, in order.
func Recorded(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, "*"+recordSuffix)) // the pattern is right
	var names []string
	for _, path := range paths {
		names = append(names, strings.TrimSuffix(filepath.Base(path), recordSuffix))
	}
	return names
}
