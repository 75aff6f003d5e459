// Command balancer measures our API balancer beside HAProxy, with what `make build`
// left in bin and Debian's package haproxy: what a byte, a request and a connection
// through each cost, and what they add to the way there. Both run all the time, as
// processes of their own on the loopback, before the same three API servers that are
// made up, and are measured in turns, beside the way without either.
//
//	go run ./bench/balancer [-rounds 5] [-for 5s] [-clients 32] [-tls]
//
// Neither looks into the bytes, so clients and servers speak none of TLS by default:
// it would cost them ten times what a balancer costs, on the same processors, and
// its noise would hide the figures. With -tls they do, as an API server's clients do.
// The balancers' own health checks always do.
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	// The children end with the thread that started them: this one lives longest.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rounds, clients int
	length          time.Duration
	stream          int64 // bytes of a long answer
	tls             bool
	kuorum, haproxy string // programs
}

func run(ctx context.Context, args []string) error {
	if len(args) > 1 && args[0] == "servers" { // it calls itself so
		return serveAll(args[1])
	}
	var o options
	flags := flag.NewFlagSet("balancer", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "how often each way has its turn")
	flags.DurationVar(&o.length, "for", 5*time.Second, "how long a turn takes")
	flags.IntVar(&o.clients, "clients", 32, "how many there are at once; each load is also measured with one, which waits for nobody")
	flags.Int64Var(&o.stream, "stream", 1<<30, "bytes of a stream")
	flags.BoolVar(&o.tls, "tls", false, "clients and servers speak TLS")
	flags.StringVar(&o.kuorum, "kuorum", "bin/kuorum", "")
	flags.StringVar(&o.haproxy, "haproxy", "/usr/sbin/haproxy", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	b := &bench{options: o, idle: map[string][]float64{}, seen: map[key][]figures{}, ratios: map[string][]figures{}}
	defer b.stop()
	if err := b.start(ctx); err != nil {
		return err
	}
	for round := range o.rounds {
		if err := b.round(ctx, round); err != nil {
			return err
		}
	}
	if err := b.healthy(ctx); err != nil { // or the last figures are those of something else
		return err
	}
	b.print()
	return nil
}

// bench is the processes, and what was measured.
type bench struct {
	options
	dir    string // of the configurations
	dialer dialer
	ways   []*way
	ends   []func()

	idle   map[string][]float64 // cores
	seen   map[key][]figures
	ratios map[string][]figures // ours to HAProxy's of each load, run by run
}

// The ways to a server.
const (
	direct = "direct"
	ours   = "kuorum"
	theirs = "HAProxy"
)

// way is one to a server, through a balancer or not.
type way struct {
	name    string
	address string
	pid     int    // of the balancer; 0 for none
	health  string // URL of what tells that all three servers are up; empty for none
}

// key is a row of the table.
type key struct {
	load string
	way  string
}

// figures of a turn. Times are in µs.
type figures struct {
	rate, p50, p99, addedP50, addedP99 float64
	cpu                                float64 // seconds of the balancer for so many as the load has it
}

// round measures each load by each way. Who is first changes from round to round.
func (b *bench) round(ctx context.Context, round int) error {
	if err := b.rest(ctx); err != nil {
		return err
	}
	for _, l := range b.loads() {
		turn := map[string]figures{}
		for i := range b.ways {
			w := b.ways[(i+round)%len(b.ways)]
			f, err := b.measure(ctx, l, w)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", l.name, w.name, err)
			}
			turn[w.name] = f
		}
		for name, f := range turn {
			f.addedP50, f.addedP99 = f.p50-turn[direct].p50, f.p99-turn[direct].p99
			turn[name] = f
			b.seen[key{l.name, name}] = append(b.seen[key{l.name, name}], f)
		}
		b.ratios[l.name] = append(b.ratios[l.name], turn[ours].over(turn[theirs]))
	}
	return nil
}

func (f figures) over(other figures) figures {
	return figures{
		rate: ratio(f.rate, other.rate), p50: ratio(f.p50, other.p50), p99: ratio(f.p99, other.p99),
		addedP50: ratio(f.addedP50, other.addedP50), addedP99: ratio(f.addedP99, other.addedP99), cpu: ratio(f.cpu, other.cpu),
	}
}

// ratio is NaN where one seems to be nothing.
func ratio(x, y float64) float64 {
	if x <= 0 || y <= 0 {
		return math.NaN()
	}
	return x / y
}

// rest is a turn of both balancers without a client.
func (b *bench) rest(ctx context.Context) error {
	before := map[string]time.Duration{}
	for _, w := range b.ways {
		cpu, err := w.cpu()
		if err != nil {
			return err
		}
		before[w.name] = cpu
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(b.length):
	}
	for _, w := range b.ways {
		cpu, err := w.cpu()
		if err != nil {
			return err
		}
		if w.pid != 0 {
			b.idle[w.name] = append(b.idle[w.name], (cpu-before[w.name]).Seconds()/b.length.Seconds())
		}
	}
	return nil
}

func (b *bench) measure(ctx context.Context, l load, w *way) (f figures, err error) {
	ready, err := l.prepare(ctx, b.dialer, w.address)
	if err != nil {
		return f, err
	}
	runtime.GC() // our own garbage is in nobody's turn
	before, err := w.cpu()
	if err != nil {
		return f, err
	}
	s, err := ready(b.length)
	if err != nil {
		return f, err
	}
	after, err := w.cpu()
	if err != nil {
		return f, err
	}
	f.rate = s.amount / s.took.Seconds()
	f.p50, f.p99 = s.quantile(0.5), s.quantile(0.99)
	f.cpu = (after - before).Seconds() / s.amount * l.per
	return f, nil
}
