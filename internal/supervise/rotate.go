package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"
)

const (
	rotateEvery = 30 * time.Second
	keptLogs    = 3
)

// limits are sizes of a log in bytes.
type limits struct {
	rotate int64 // a larger log is kept as NAME.1 and emptied
	drop   int64 // a larger log that cannot be kept is emptied all the same
}

var logLimits = limits{rotate: 16 << 20, drop: 64 << 20}

// rotateLogs keeps the logs of all processes small until ctx is done.
func (s *Supervisor) rotateLogs(ctx context.Context) {
	var logs []string
	for _, u := range s.units {
		if u.Log != "" && !slices.Contains(logs, u.Log) {
			logs = append(logs, u.Log)
		}
	}
	RotateLogs(ctx, s.log, logs...)
}

// RotateLogs keeps log files small until ctx is done: one that has grown
// beyond 16 MiB becomes NAME.1, the one before NAME.2 and so on to NAME.3.
// Their writers must have opened them with O_APPEND. Files that do not exist
// are passed over. It blocks.
func RotateLogs(ctx context.Context, log *slog.Logger, logs ...string) {
	tick := time.NewTicker(rotateEvery)
	defer tick.Stop()
	for {
		for _, path := range logs {
			if err := rotate(path, logLimits); err != nil {
				log.Warn("log cannot be rotated", "path", path, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// rotate keeps a log that has grown beyond its limit as NAME.1, the one before
// as NAME.2 and so on to NAME.3, and empties the log in place, since its
// writers hold it open: with O_APPEND, so that they go on at its new end.
//
// Two windows are known. What is written between the last read and the
// truncation is lost: microseconds, a line or two of a program that never
// stops talking. A kill between the rename and the truncation leaves the same
// lines in both files. When there is no room for the copy, the log is emptied
// only once it has reached the second limit: a full disk would take etcd down,
// which is worse than a lost log.
func rotate(path string, limit limits) error {
	log, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer log.Close()
	info, err := log.Stat()
	if err != nil || info.Size() <= limit.rotate {
		return err
	}
	err = keepLog(log, path, info.Mode().Perm())
	if err != nil && info.Size() > limit.drop {
		return errors.Join(fmt.Errorf("its lines are lost: %w", err), log.Truncate(0))
	}
	return err
}

// keepLog copies the log, shifts the older ones, and empties it.
func keepLog(log *os.File, path string, mode os.FileMode) error {
	partial := path + ".partial"
	kept, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(kept, log)
	if err == nil {
		err = shift(path, partial)
	}
	if err != nil {
		return errors.Join(err, kept.Close(), os.Remove(partial))
	}
	// What came during the copy and the renames is little: this pass is short,
	// and so is the window after it.
	_, err = io.Copy(kept, log)
	return errors.Join(err, log.Truncate(0), kept.Close())
}

// shift renames NAME.2 to NAME.3, NAME.1 to NAME.2 and partial to NAME.1.
func shift(path, partial string) error {
	for i := keptLogs - 1; i >= 1; i-- {
		err := os.Rename(numbered(path, i), numbered(path, i+1))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return os.Rename(partial, numbered(path, 1))
}

func numbered(path string, i int) string { return fmt.Sprintf("%s.%d", path, i) }
