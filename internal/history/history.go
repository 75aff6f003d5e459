// Package history is who has led etcd, the scheduler and the controller-manager, who
// held the virtual IP, when that changed and why. Each node writes down what it sees
// itself, in a Book; Merge makes one account of what several have seen.
package history

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/ledger"
)

// Path answers GET with an Account, of the changes since the query's since=TIME
// (RFC 3339), or of all that are remembered. Any agent of a node that is no worker
// answers, to whoever may ask for its status.
const Path = "/v1/leader/history"

// What can be led.
const (
	Etcd              = "etcd"
	Scheduler         = "scheduler"
	ControllerManager = "controller-manager"
	VIP               = "vip"
)

// keep is how many of the last changes a node remembers at least.
const keep = 1000

// Change is that somebody else leads, or nobody, as one node has seen it.
type Change struct {
	// At is in UTC, to the millisecond: by the clock of the holder where a lease says
	// it, else by the clock of By, which may have looked up to 2 s later.
	At   time.Time `json:"at"`
	What string    `json:"what"`
	From string    `json:"from,omitempty"` // a node; empty: nobody, or By does not know
	To   string    `json:"to,omitempty"`   // a node; empty: nobody, or By does not know
	// Term is etcd's raft term, or how often a lease has changed hands; the virtual IP
	// has none.
	Term uint64 `json:"term,omitempty"`
	Why  string `json:"why,omitempty"` // empty: By does not know
	By   string `json:"by"`            // the node that has seen it
}

// Account is what one node has seen.
type Account struct {
	Changes []Change `json:"changes"` // in the order in which it was written down
}

// Sight is who leads something at a moment.
type Sight struct {
	What   string
	Holder string // a node; empty: nobody
	Term   uint64
	Since  time.Time // when that began; zero: not known, so it is the moment of the look
	From   string    // who led before, if the Book need not know
	// Of a lease only: when it was renewed, and how long it lasts then.
	Renewed time.Time
	Lasts   time.Duration
}

// Book is what a node has seen, on its disk. Its methods may be called from several
// goroutines.
type Book struct {
	node string
	file *ledger.File[Change]
	vip  *ledger.File[cluster.VIPChange]

	mu   sync.Mutex
	last map[string]Change // by what; nil until the file was read
}

// NewBook is the book of the node of that name in the file at path. The one at vip is
// kept by the node's balancer, and read only. It does not touch the disk.
func NewBook(path, vip, node string) *Book {
	return &Book{node: node, file: ledger.New[Change](path, keep), vip: ledger.New[cluster.VIPChange](vip, 0)}
}

// See writes down what is seen, if it is news, and why it changed.
func (b *Book) See(s Sight, why string) error { return b.note(s, why, false) }

// Explain is See by one who knows the reason better than whoever only looks: it is
// written down also if the change is known already.
func (b *Book) Explain(s Sight, why string) error { return b.note(s, why, true) }

func (b *Book) note(s Sight, why string, explains bool) error { //nolint:revive // a fact of the caller, not a switch between two functions
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.read(); err != nil {
		return err
	}
	s.Since = s.Since.UTC().Truncate(time.Millisecond)
	last, known := b.last[s.What]
	if known && last.To == s.Holder && last.Term == s.Term {
		if !explains || last.Why == why {
			return nil
		}
		last.Why = why
		return b.add(last)
	}
	from := cmp.Or(s.From, last.To, last.From)
	if s.Holder == "" && last.Term != s.Term {
		from = s.From // whose it was has not been seen
	}
	if known && !later(last, s) || !known && s.Holder == "" && from == "" {
		return nil
	}
	c := Change{At: s.Since, What: s.What, From: from, To: s.Holder, Term: s.Term, Why: why, By: b.node}
	if c.At.IsZero() {
		c.At = time.Now().UTC().Truncate(time.Millisecond)
	}
	return b.add(c)
}

// later tells whether s is what came after last: who asks an API server may be told
// of the past. Terms grow, and within one a lease is taken first and given up then;
// but for a lease that was deleted, which begins anew.
func later(last Change, s Sight) bool {
	if s.Since.IsZero() || s.Since.After(last.At) {
		return true
	}
	return s.Term > last.Term || s.Term == last.Term && last.To != "" && s.Holder == ""
}

func (b *Book) add(c Change) error {
	if err := b.file.Add(c); err != nil {
		return err
	}
	b.last[c.What] = c
	return nil
}

func (b *Book) read() error {
	if b.last != nil {
		return nil
	}
	changes, err := b.file.All()
	if err != nil {
		return err
	}
	b.last = map[string]Change{}
	for _, c := range changes {
		b.last[c.What] = c
	}
	return nil
}

// Since is all that the node has seen since that moment, those of the virtual IP too.
// Servers' addresses are told by their names, as name has them; one that it does not
// have is told as an address.
func (b *Book) Since(at time.Time, name func(address string) string) (Account, error) {
	changes, err := b.file.All()
	if err != nil {
		return Account{}, fmt.Errorf("cannot tell who led: %w", err)
	}
	turns, err := b.vip.All()
	if err != nil {
		return Account{}, fmt.Errorf("cannot tell who held the virtual IP: %w", err)
	}
	account := Account{Changes: []Change{}}
	for _, c := range append(changes, b.ofVIP(turns, name)...) {
		if !c.At.Before(at) {
			account.Changes = append(account.Changes, c)
		}
	}
	return account, nil
}

// ofVIP is what a balancer has written down of its own part.
func (b *Book) ofVIP(turns []cluster.VIPChange, name func(string) string) []Change {
	var changes []Change
	for _, t := range turns {
		c := Change{At: t.At.UTC().Truncate(time.Millisecond), What: VIP, Why: t.Reason, By: b.node}
		peer := t.Peer
		if peer != "" {
			peer = cmp.Or(name(peer), peer)
		}
		switch {
		case t.To == cluster.VIPActive && t.From != cluster.VIPActive:
			c.From, c.To = peer, b.node
		case t.From == cluster.VIPActive && t.To != cluster.VIPActive:
			c.From, c.To = b.node, peer
		default:
			continue // nobody has come or gone
		}
		changes = append(changes, c)
	}
	return changes
}
