package history

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/ledger"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time {
	return start.Add(time.Duration(seconds * float64(time.Second)))
}

// bookIn is the book of cp1 in a directory.
func bookIn(dir string) *Book {
	return NewBook(filepath.Join(dir, "leaders.jsonl"), filepath.Join(dir, "vip.jsonl"), "cp1")
}

func told(t *testing.T, b *Book) []Change {
	t.Helper()
	names := map[string]string{"198.18.0.11": "cp1", "198.18.0.12": "cp2"}
	account, err := b.Since(time.Time{}, func(address string) string { return names[address] })
	if err != nil {
		t.Fatal(err)
	}
	return account.Changes
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestBook: each change is written down once, also by the next agent, and what an API
// server tells of the past is no change.
func TestBook(t *testing.T) {
	dir := t.TempDir()
	b := bookIn(dir)
	sights := func(holder string, term uint64, since float64) Sight {
		return Sight{What: Scheduler, Holder: holder, Term: term, Since: at(since)}
	}
	must(t, b.See(sights("", 0, 0), "")) // nobody has ever led: nothing has changed
	must(t, b.See(sights("cp1", 1, 1.0004), ""))
	must(t, b.See(sights("cp1", 1, 1.0004), "again"))
	must(t, b.See(sights("", 1, 9), "cp1 gave it up"))
	b = bookIn(dir)
	must(t, b.See(sights("", 1, 9), ""))
	must(t, b.See(sights("cp1", 1, 1.0004), "")) // from a cache that is behind
	must(t, b.Explain(sights("", 1, 9), "its process died"))
	must(t, b.Explain(sights("", 1, 9), "its process died"))
	must(t, b.See(sights("", 1, 9), "cp1 gave it up"))
	must(t, b.Explain(sights("cp2", 2, 10), "handed over"))
	must(t, b.See(sights("cp2", 2, 10), ""))
	must(t, b.See(sights("", 1, 9), ""))
	must(t, b.See(sights("cp3", 1, 60), "")) // the lease was deleted
	must(t, b.See(Sight{What: Etcd, Holder: "cp1", Term: 7}, ""))
	must(t, b.See(Sight{What: Etcd, Holder: "cp2", Term: 3}, "")) // another etcd was put in its place

	got := told(t, bookIn(dir))
	for _, i := range []int{len(got) - 2, len(got) - 1} {
		if c := &got[i]; time.Since(c.At) > time.Minute || c.At.Location() != time.UTC || c.At.Nanosecond()%int(time.Millisecond) != 0 {
			t.Errorf("seen at %v", c.At)
		}
		got[i].At = time.Time{}
	}
	want := []Change{
		{At: at(1), What: Scheduler, To: "cp1", Term: 1, By: "cp1"},
		{At: at(9), What: Scheduler, From: "cp1", Term: 1, Why: "cp1 gave it up", By: "cp1"},
		{At: at(9), What: Scheduler, From: "cp1", Term: 1, Why: "its process died", By: "cp1"},
		{At: at(10), What: Scheduler, From: "cp1", To: "cp2", Term: 2, Why: "handed over", By: "cp1"},
		{At: at(60), What: Scheduler, From: "cp2", To: "cp3", Term: 1, By: "cp1"},
		{What: Etcd, To: "cp1", Term: 7, By: "cp1"},
		{What: Etcd, From: "cp1", To: "cp2", Term: 3, By: "cp1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestExplainsWhatItHasNotSeen: the agent that releases the lease of a dead process
// may do so before it has looked for the first time.
func TestExplainsWhatItHasNotSeen(t *testing.T) {
	b := bookIn(t.TempDir())
	must(t, b.Explain(Sight{What: Scheduler, From: "cp1", Term: 4, Since: at(1)}, "it died"))
	want := []Change{{At: at(1), What: Scheduler, From: "cp1", Term: 4, Why: "it died", By: "cp1"}}
	if diff := cmp.Diff(want, told(t, b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestFullDisk: what could not be written down is, as soon as there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	b, path := bookIn(dir), filepath.Join(dir, "leaders.jsonl")
	must(t, b.See(Sight{What: Etcd, Holder: "cp1", Term: 1}, ""))
	must(t, os.Remove(path))
	must(t, os.Mkdir(path, 0o700))
	next := Sight{What: Etcd, Holder: "cp2", Term: 2}
	if err := b.See(next, ""); err == nil {
		t.Error("a directory was written to")
	}
	if _, err := b.Since(time.Time{}, nil); err == nil {
		t.Error("a directory was read")
	}
	must(t, os.Remove(path))
	must(t, b.See(next, ""))
	if got := told(t, b); len(got) != 1 || got[0].To != "cp2" || got[0].From != "cp1" {
		t.Errorf("got %+v", got)
	}
}

// TestVirtualIP: a balancer's own states become who had the address, by names where
// those are known.
func TestVirtualIP(t *testing.T) {
	dir := t.TempDir()
	b := bookIn(dir)
	file := ledger.New[cluster.VIPChange](filepath.Join(dir, "vip.jsonl"), 0)
	for _, turn := range []cluster.VIPChange{
		{At: at(1), From: "initialize", To: "backup", Reason: "started"},
		{At: at(2), From: "backup", To: "active", Reason: "there is no active router"},
		{At: at(3), From: "active", To: "active", Reason: "nobody took the addresses over", Peer: "198.18.0.12"},
		{At: at(4), From: "active", To: "backup", Reason: "handed over", Peer: "198.18.0.12"},
		{At: at(5), From: "backup", To: "active", Reason: "heard nothing", Peer: "198.18.0.99"},
		{At: at(6), From: "active", To: "initialize", Reason: "shut down"},
	} {
		must(t, file.Add(turn))
	}
	want := []Change{
		{At: at(2), What: VIP, To: "cp1", Why: "there is no active router", By: "cp1"},
		{At: at(4), What: VIP, From: "cp1", To: "cp2", Why: "handed over", By: "cp1"},
		{At: at(5), What: VIP, From: "198.18.0.99", To: "cp1", Why: "heard nothing", By: "cp1"},
		{At: at(6), What: VIP, From: "cp1", Why: "shut down", By: "cp1"},
	}
	if diff := cmp.Diff(want, told(t, b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	late, err := b.Since(at(5), func(string) string { return "" })
	must(t, err)
	if diff := cmp.Diff(want[2:], late.Changes); diff != "" {
		t.Errorf("since the 5th second (-want +got):\n%s", diff)
	}
}
