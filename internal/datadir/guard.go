package datadir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"kuorum/internal/cluster"
)

// againAfter is how long a refusal counts before everything is looked at again.
const againAfter = 5 * time.Second

// Guard decides whether a member of etcd may start from the data on its disk.
type Guard struct {
	Node string // that it is on
	Dir  string // the data directory
	Mark string // file of the node's own mark
	// Accept is a file by which the owner of the data takes it as it is, see
	// docs/findings.md.
	Accept string
	Voters func() int // how many the cluster has, by the node's cluster.yaml
	// Others are the marks that other nodes know of. It must not block for long;
	// whoever does not answer has none.
	Others func(context.Context) []Mark
	Log    *slog.Logger

	mu      sync.Mutex
	old     *cluster.OldData // why it may not; nil: it may, or nobody has asked
	decided time.Time        // when old was found
	known   Mark             // by which it was found: who had told it may be silent since
}

// May is nil when the member may start. It blocks no longer than Others does. A refusal
// is remembered, so that it may be called often.
func (g *Guard) May(ctx context.Context) error {
	if g.due() {
		g.decide(g.look(ctx))
	}
	old := g.Old()
	if old == nil {
		return nil
	}
	return &cluster.Problem{
		What: fmt.Sprintf("etcd's data is older than what %s had", g.Node), Why: old.Why(),
		Do: "kuorum etcd rebuild " + g.Node, Exit: cluster.ExitRefused,
	}
}

// Old is why the member may not start; nil when it may, or was not asked for.
func (g *Guard) Old() *cluster.OldData {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.old
}

func (g *Guard) due() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.old == nil || time.Since(g.decided) >= againAfter
}

func (g *Guard) decide(old *cluster.OldData) {
	g.mu.Lock()
	before := g.old
	g.old, g.decided = old, time.Now()
	g.mu.Unlock()
	if old != nil && before == nil {
		g.Log.Error("etcd does not start: its data is older than what it had", "why", old.Why(), "command", "kuorum etcd rebuild "+g.Node)
	}
}

// look compares the data with all marks. What cannot be read refuses nothing: of its
// log etcd says itself what is wrong.
func (g *Guard) look(ctx context.Context) *cluster.OldData {
	last, err := Last(g.Dir)
	if errors.Is(err, ErrNoData) {
		if old := g.Old(); old != nil {
			return old // somebody is about to put other data there
		}
		g.forget()
		return nil
	}
	if err != nil {
		g.Log.Warn("how old etcd's data is cannot be told", "error", err)
		return nil
	}
	old := g.compare(ctx, last)
	if old == nil {
		return nil
	}
	g.known = Mark{Cluster: hex(last.Cluster), Member: hex(last.Member), Index: old.Had, At: old.At}
	if _, err := os.Stat(g.Accept); err == nil {
		g.Log.Warn("etcd starts from older data than it had, since somebody wants it to", "why", old.Why(), "file", g.Accept)
		g.known = Mark{} // the file goes once the marks are of this data
		return nil
	}
	return old
}

func (g *Guard) compare(ctx context.Context, last Position) *cluster.OldData {
	voters := g.Voters()
	if voters < fewest {
		return nil // nobody needs to be asked
	}
	if old := Check(last, []Mark{g.known}, voters); old != nil {
		return old
	}
	own, err := ReadMark(g.Mark)
	if err != nil {
		g.Log.Warn("how old etcd's data is can be told by the others only", "error", err)
	}
	return Check(last, append(g.Others(ctx), own), voters)
}

// forget removes what was noted about an earlier member: the next one may have its
// IDs, which etcd reckons from names and addresses, and has acknowledged nothing.
func (g *Guard) forget() {
	for _, file := range []string{g.Mark, g.Accept} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			g.Log.Warn("a note about earlier data of etcd cannot be removed", "error", err)
		}
	}
}
