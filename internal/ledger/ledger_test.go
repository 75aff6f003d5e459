package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type entry struct {
	N    int    `json:"n"`
	Text string `json:"text,omitempty"`
}

func all(t *testing.T, f *File[entry]) (numbers []int) {
	t.Helper()
	records, err := f.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		numbers = append(numbers, r.N)
	}
	return numbers
}

func add(t *testing.T, f *File[entry], numbers ...int) {
	t.Helper()
	for _, n := range numbers {
		if err := f.Add(entry{N: n, Text: "two\nlines"}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAdd: what was added is there, for whoever opens the file next too, and nobody
// but its owner may read it.
func TestAdd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "not", "there", "x.jsonl")
	f := New[entry](path, 0)
	if got := all(t, f); got != nil {
		t.Errorf("an account that does not exist has %v", got)
	}
	add(t, f, 1, 2)
	add(t, New[entry](path, 0), 3)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if diff := cmp.Diff([]int{1, 2, 3}, all(t, New[entry](path, 0))); diff != "" {
		t.Error(diff)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	add(t, f, 4)
	if diff := cmp.Diff([]int{4}, all(t, f)); diff != "" {
		t.Errorf("after the file was removed: %s", diff)
	}
}

// TestTornLine: wherever a power cut has ended the file, the whole lines before it
// count, and so does what is added after it.
func TestTornLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	add(t, New[entry](path, 0), 1, 2)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	second := strings.Index(string(whole), "\n") + 1
	for end := range len(whole) + 1 {
		if err := os.WriteFile(path, whole[:end], 0o600); err != nil {
			t.Fatal(err)
		}
		want := []int(nil)
		if end >= second {
			want = append(want, 1)
		}
		if end == len(whole) {
			want = append(want, 2)
		}
		f := New[entry](path, 0)
		if diff := cmp.Diff(want, all(t, f)); diff != "" {
			t.Errorf("cut at %d: %s", end, diff)
		}
		add(t, f, 3)
		add(t, f, 4)
		if diff := cmp.Diff(append(want, 3, 4), all(t, f)); diff != "" {
			t.Errorf("cut at %d, and added to: %s", end, diff)
		}
	}
}

func TestWhatIsNoRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	if err := os.WriteFile(path, []byte("\n[]\n{\"n\":\"one\"}\n{\"n\":2}\nnull and void\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{2}, all(t, New[entry](path, 0))); diff != "" {
		t.Error(diff)
	}
}

// TestBounds: the last records are kept, however often the file is opened, and it
// does not grow.
func TestBounds(t *testing.T) {
	const keep, last = 8, 100
	path := filepath.Join(t.TempDir(), "x.jsonl")
	f := New[entry](path, keep)
	for n := 1; n <= last; n++ {
		if n%7 == 0 {
			f = New[entry](path, keep)
		}
		add(t, f, n)
		got := all(t, f)
		if len(got) < min(n, keep) || len(got) > keep+keep/4 {
			t.Fatalf("%d were added, %d are kept", n, len(got))
		}
		for i, have := range got {
			if want := n - len(got) + 1 + i; have != want {
				t.Fatalf("%d were added, and kept are %v", n, got)
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	if err != nil || len(left) != 1 {
		t.Errorf("%v are left, %v", left, err)
	}
}

// TestAtOnce: several add and read at the same time.
func TestAtOnce(t *testing.T) {
	const writers, each = 8, 20
	f := New[entry](filepath.Join(t.TempDir(), "x.jsonl"), writers*each)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if err := f.Add(entry{N: w*each + i, Text: fmt.Sprint(w)}); err != nil {
					t.Error(err)
				}
				if _, err := f.All(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	records, err := f.All()
	if err != nil {
		t.Fatal(err)
	}
	seen, next := map[int]bool{}, map[string]int{}
	for _, r := range records {
		if seen[r.N] || r.N%each != next[r.Text] {
			t.Errorf("%+v is there twice, or out of order", r)
		}
		seen[r.N], next[r.Text] = true, r.N%each+1
	}
	if len(seen) != writers*each {
		t.Errorf("%d of %d were kept", len(seen), writers*each)
	}
}

// TestWhatCannotBeWritten is told, and what is there stays.
func TestWhatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.jsonl")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	f := New[entry](path, 0)
	if err := f.Add(entry{N: 1}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a directory was added to: %v", err)
	}
	if _, err := f.All(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a directory was read: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	add(t, f, 2)
	if diff := cmp.Diff([]int{2}, all(t, f)); diff != "" {
		t.Error(diff)
	}
	// A full disk takes a part of the line.
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700)); err != nil {
		t.Fatal(err)
	}
	if f.Add(entry{N: 3}) == nil {
		t.Error("a directory was added to")
	}
	if err := errors.Join(os.Remove(path), os.WriteFile(path, append(whole, whole[:len(whole)/2]...), 0o600)); err != nil {
		t.Fatal(err)
	}
	add(t, f, 4)
	if diff := cmp.Diff([]int{2, 4}, all(t, f)); diff != "" {
		t.Error(diff)
	}
	if err := New[any](path, 0).Add(func() {}); err == nil {
		t.Error("a function was written down")
	}
}
