package endpoint

import (
	"bytes"
	"context"
	"reflect"
	"slices"
	"strings"
	"time"
)

// followInterval is how often the configuration file is looked at. It is read
// whole: it is small, and nothing else is sure to tell a change.
const followInterval = time.Second

// follower hands what changes in a configuration file on to a balancer.
type follower struct {
	balancer *Balancer
	path     string
	seen     []byte // what the file held when it was last read
	unread   string // why it could not be read since then; empty if it could
}

// look logs what is wrong with the file once a change of it. It is not safe
// for concurrent use.
func (f *follower) look(ctx context.Context) {
	data, err := readConfig(f.path)
	if err != nil {
		if err.Error() != f.unread {
			f.refuse(ctx, err)
		}
		f.unread = err.Error()
		return
	}
	f.unread = ""
	if bytes.Equal(data, f.seen) {
		return
	}
	f.seen = data
	if err := f.apply(ctx, data); err != nil {
		f.refuse(ctx, err)
	}
}

func (f *follower) refuse(ctx context.Context, err error) {
	f.balancer.log.ErrorContext(ctx, "the configuration changed but is bad, going on with the one before", "error", err)
}

func (f *follower) apply(ctx context.Context, data []byte) error {
	cfg, err := parseConfig(f.path, data)
	if err != nil {
		return err
	}
	if err := f.balancer.SetBackends(cfg.Backends, cfg.Local); err != nil {
		return err
	}
	if f.balancer.keeper != nil && cfg.VIP != nil {
		if err := f.balancer.keeper.replace(*cfg.VIP); err != nil {
			return err
		}
	}
	if fields := fixedChanges(f.balancer.cfg, cfg); len(fields) > 0 {
		f.balancer.log.WarnContext(ctx, "the configuration changed in what needs a restart, which is ignored until then",
			"file", f.path, "fields", fields)
	}
	return nil
}

// fixedChanges names the fields that differ and cannot be followed: all but the
// two that SetBackends takes, and who else may hold the virtual IP.
func fixedChanges(running, file Config) []string {
	var fields []string
	if running.VIP != nil && file.VIP != nil {
		same := *file.VIP
		same.Peers, same.Rank = running.VIP.Peers, running.VIP.Rank
		file.VIP = &same
	}
	a, b := reflect.ValueOf(running), reflect.ValueOf(file)
	for i := range a.NumField() {
		name, _, _ := strings.Cut(a.Type().Field(i).Tag.Get("json"), ",")
		if slices.Contains([]string{"backends", "local"}, name) {
			continue
		}
		if !reflect.DeepEqual(a.Field(i).Interface(), b.Field(i).Interface()) {
			fields = append(fields, name)
		}
	}
	return fields
}
