package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
)

const (
	rttTries     = 5
	dialPatience = 2 * time.Second
)

// Way is the network between this machine and another one.
type Way struct {
	Name     string
	Tries    int           // that were answered
	Min, Max time.Duration // of a TCP connect, which is one round trip
	Closed   []Closed      // ports that did not answer
	Ports    int           // that were tried
}

// Closed is a port that did not answer.
type Closed struct {
	Port    int
	Refused bool // the machine is there, but nobody listens
}

// MeasureWays connects five times to the first of ports of every node, and
// once to the others. It blocks until the slowest has answered, 2 s for a
// machine that does not.
func MeasureWays(ctx context.Context, nodes []cluster.Node, ports []int) []Way {
	ways := make([]Way, len(nodes))
	var all sync.WaitGroup
	for i, n := range nodes {
		all.Go(func() { ways[i] = measureWay(ctx, n, ports) })
	}
	all.Wait()
	return ways
}

func measureWay(ctx context.Context, n cluster.Node, ports []int) Way {
	w := Way{Name: n.Name, Ports: len(ports)}
	var lock sync.Mutex
	var all sync.WaitGroup
	note := func(port int, err error) {
		lock.Lock()
		defer lock.Unlock()
		w.Closed = append(w.Closed, Closed{Port: port, Refused: errors.Is(err, syscall.ECONNREFUSED)})
	}
	for i, port := range ports {
		address := net.JoinHostPort(n.Address, strconv.Itoa(port))
		if i == 0 {
			continue // below: alone, so that the others do not disturb it
		}
		all.Go(func() {
			if _, err := connect(ctx, address); err != nil {
				note(port, err)
			}
		})
	}
	all.Wait()
	for range rttTries {
		took, err := connect(ctx, net.JoinHostPort(n.Address, strconv.Itoa(ports[0])))
		if err != nil {
			note(ports[0], err)
			break
		}
		if w.Tries == 0 || took < w.Min {
			w.Min = took
		}
		w.Tries, w.Max = w.Tries+1, max(w.Max, took)
	}
	slices.SortFunc(w.Closed, func(a, b Closed) int { return a.Port - b.Port })
	return w
}

func connect(ctx context.Context, address string) (time.Duration, error) {
	limited, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	start := time.Now()
	conn, err := (&net.Dialer{}).DialContext(limited, "tcp", address)
	took := time.Since(start)
	if err != nil {
		return took, err
	}
	return took, conn.Close()
}

// LongestRTT is the longest round trip of all ways, 0 when none was measured.
func LongestRTT(ways []Way) time.Duration {
	var longest time.Duration
	for _, w := range ways {
		longest = max(longest, w.Max)
	}
	return longest
}

// Network judges the ways to the other servers. A server that is off is not
// this machine's fault, one that answers at some ports only is a firewall, or
// has a component that does not run.
func Network(ways []Way, heartbeat time.Duration) Check {
	c := Check{Name: "network", State: StateOK, Why: "members of etcd must reach each other within a heartbeat, every node the servers' agents and API"}
	if len(ways) == 0 {
		return c.skipped("there is no other server")
	}
	var figures, cut, silent, down []string
	for _, w := range ways {
		figures = append(figures, w.String())
		switch {
		case len(w.Closed) == w.Ports && !w.refuses():
			silent = append(silent, w.Name)
		case !w.refuses() && len(w.Closed) > 0:
			cut = append(cut, w.Name+" at "+w.closed())
		case len(w.Closed) > 0:
			down = append(down, w.Name+" at "+w.closed())
		}
	}
	c.Measured = strings.Join(figures, "; ")
	switch {
	case len(cut) > 0:
		return c.found(StateFailed, "this machine does not reach "+strings.Join(cut, ", "), "Open the way between the machines: firewall, routes.")
	case len(silent) > 0:
		return c.found(StateWarning, strings.Join(silent, ", ")+" cannot be reached at all: off, or cut off", "kuorum status")
	case len(down) > 0:
		return c.found(StateWarning, "nobody listens on "+strings.Join(down, ", "), "kuorum status")
	case heartbeat > 0 && LongestRTT(ways) > heartbeat: // 0: somebody else runs etcd
		return c.found(StateWarning, fmt.Sprintf("the way to another server takes longer than a heartbeat of %v", heartbeat), "See the check etcd-timers.")
	}
	return c
}

// refuses is whether every closed port was refused by the machine itself.
func (w Way) refuses() bool {
	return len(w.Closed) > 0 && !slices.ContainsFunc(w.Closed, func(c Closed) bool { return !c.Refused })
}

func (w Way) closed() string {
	var list []string
	for _, c := range w.Closed {
		list = append(list, strconv.Itoa(c.Port))
	}
	return "port " + strings.Join(list, " and ")
}

func (w Way) String() string {
	if w.Tries == 0 {
		return w.Name + " no answer"
	}
	return fmt.Sprintf("%s %s to %s", w.Name, short(w.Min), short(w.Max))
}

// Offsets judges the clocks of the other nodes by this machine's, as their
// agents' reports have them; self is left out.
func Offsets(reports []cluster.NodeReport, self string) Check {
	c := Check{Name: "clock-offset", State: StateOK, Why: "certificates, tokens and leases depend on clocks that agree"}
	var figures []string
	var worst cluster.NodeReport
	for _, r := range reports {
		if r.Name == self || r.Status == nil {
			continue
		}
		offset := time.Duration(r.ClockOffset)
		figures = append(figures, fmt.Sprintf("%s %+.1f s", r.Name, offset.Seconds()))
		if worst.Name == "" || offset.Abs() > time.Duration(worst.ClockOffset).Abs() {
			worst = r
		}
	}
	if len(figures) == 0 {
		return c.skipped("no other node answers")
	}
	c.Measured = strings.Join(figures, ", ")
	offset := time.Duration(worst.ClockOffset).Abs()
	if offset <= advise.ClockWarning {
		return c
	}
	state := StateWarning
	if offset > advise.ClockCritical {
		state = StateFailed
	}
	return c.found(state, fmt.Sprintf("the clocks of this machine and %s differ by %s", worst.Name, short(offset)),
		"Set the clock that is wrong, by NTP: the check clock says how this one is kept.")
}

// Timers compares the timers of etcd as they are with what this machine's
// network and the slowest disk of all servers allow.
func Timers(now cluster.Etcd, rtt, fsyncP99 time.Duration) Check {
	c := Check{Name: "etcd-timers", State: StateOK, Why: "too short, a late packet or write costs the leader; too long, a dead one is noticed late"}
	advice := advise.Timers(rtt, fsyncP99)
	heartbeat, election := time.Duration(now.Heartbeat), time.Duration(now.ElectionTimeout)
	c.Measured = fmt.Sprintf("heartbeat %v, election %v; could be %v, %v (rtt %s, fsync p99 %s)",
		heartbeat, election, advice.Heartbeat, advice.Election, short(rtt), short(fsyncP99))
	do := fmt.Sprintf("spec.etcd: {heartbeat: %v, electionTimeout: %v}, because %s", advice.Heartbeat, advice.Election, strings.Join(advice.Reasons, "; "))
	switch {
	case heartbeat < advice.Heartbeat || election < advice.Election:
		return c.found(StateWarning, "etcd's timers are shorter than the network and the disks allow", do)
	case election > advice.Election:
		return c.found(StateOK, fmt.Sprintf("etcd could notice a dead leader %.1f times as fast", float64(election)/float64(advice.Election)), do)
	}
	return c
}

// SlowestFsync is the longest p99 of own and of what the members have told, of
// the last minute.
func SlowestFsync(own time.Duration, reports []cluster.NodeReport) time.Duration {
	for _, r := range reports {
		if r.Status != nil && r.Status.Etcd != nil {
			own = max(own, time.Duration(r.Status.Etcd.FsyncP99))
		}
	}
	return own
}
