// Command failover measures how long users of a cluster are cut off when its
// most important server fails, as root, with what `make build` left in bin. That
// server is etcd's leader, holds the virtual IP, and its controller-manager and
// scheduler lead. Probes start every 5 ms, writes every 10 and new connections every
// 50, from the machines' own network.
//
//	go run ./bench/failover [-n 5] [-rounds 2] [-faults kill,freeze,cut,api-kill,api-freeze,etcd-freeze,roll] [-systems kuorum,guide,tuned]
//
// The systems run the same upstream programs in labs of the same kind, one after
// the other, in rounds. "guide" has HAProxy and keepalived with the values of
// kubeadm's guide for high availability, and etcd's own timers; "tuned" has the
// same programs with the shortest values that are safe, and kuorum's timers.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "probe" { // it calls itself so, in the lab's network
		return probe(ctx, args[1:])
	}
	flags := flag.NewFlagSet("failover", flag.ContinueOnError)
	n := flags.Int("n", 5, "tries of each fault in a round")
	rounds := flags.Int("rounds", 2, "how often each system has its turn")
	faultNames := flags.String("faults", "kill,freeze,cut", "which")
	systemNames := flags.String("systems", "kuorum,guide,tuned", "which")
	every := flags.Duration("every", 5*time.Millisecond, "from one read to the next; writes are half as frequent, new connections a tenth")
	raw := flags.Bool("v", false, "print every try")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(*systemNames, systems())
	if err != nil {
		return err
	}
	faults, err := choose(*faultNames, allFaults())
	if err != nil {
		return err
	}
	seen := results{}
	for range *rounds {
		for _, s := range chosen {
			if err := s.round(ctx, faults, *n, *every, *raw, seen); err != nil {
				return err
			}
		}
	}
	seen.print(chosen, faults)
	return nil
}

// named is what a flag lists.
type named interface{ title() string }

func choose[T named](names string, all []T) ([]T, error) {
	var chosen []T
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(x T) bool { return x.title() == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no %q", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func probe(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("probe", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "of an administrator")
	server := flags.String("server", "", "https://HOST:PORT")
	every := flags.Duration("every", 5*time.Millisecond, "")
	length := flags.Duration("for", 10*time.Second, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	p, err := newProber(*kubeconfig, *server, *every)
	if err != nil {
		return err
	}
	traces, err := p.run(ctx, *length)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(traces)
}

// key is one cell of the table.
type key struct{ system, fault, kind string }

// results are the longest gaps of each try, and how many attempts failed.
type results map[key]*cell

type cell struct {
	gaps             []time.Duration
	failed, attempts int
}

func (r results) add(k key, t trace) {
	c := r[k]
	if c == nil {
		c = &cell{}
		r[k] = c
	}
	c.gaps = append(c.gaps, t.Gap)
	c.failed += t.Failed
	c.attempts += t.Failed + t.OK
}

func (r results) print(systems []system, faults []fault) {
	fmt.Println("| fault | what a client does | system | tries | p50, ms | p99, ms | max, ms | failed |\n|---|---|---|---|---|---|---|---|")
	for _, f := range faults {
		for _, kind := range kinds() {
			for _, s := range systems {
				c := r[key{s.name, f.name, kind}]
				if c == nil {
					continue
				}
				all := slices.Sorted(slices.Values(c.gaps))
				fmt.Printf("| %s | %s | %s | %d | %d | %d | %d | %d of %d |\n", f.text, kind, s.name, len(all),
					quantile(all, 0.5).Milliseconds(), quantile(all, 0.99).Milliseconds(), all[len(all)-1].Milliseconds(), c.failed, c.attempts)
			}
		}
	}
}

// quantile of few values is an upper one: of fewer than a hundred the p99 is the
// greatest.
func quantile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// fault is something that happens to a server.
type fault struct {
	name, text string
	// orders make it happen to the victim, one after the other.
	orders func(victim string) [][]string
	// off tells that the machine has to be switched on afterwards.
	off bool
	// length is how long to look on with each system, in which it must be over.
	length func(system) time.Duration
}

func (f fault) title() string { return f.name }

// once is one order, with the victim in place of %s.
func once(words ...string) func(string) [][]string {
	return func(victim string) [][]string {
		order := make([]string, len(words))
		for i, word := range words {
			order[i] = strings.ReplaceAll(word, "%s", victim)
		}
		return [][]string{order}
	}
}

// everyServer is rebooted in order, the victim first, each when the one before is back.
func everyServer(victim string) [][]string {
	var orders [][]string
	for _, name := range append([]string{victim}, slices.DeleteFunc(servers(), func(n string) bool { return n == victim })...) {
		orders = append(orders, []string{"lab", "reboot", name}, []string{"status", "--wait", "--brief", "--timeout", "2m"})
	}
	return orders
}

func servers() []string { return []string{"cp1", "cp2", "cp3"} }

func allFaults() []fault {
	return []fault{
		{name: "kill", text: "its power is cut", orders: once("fault", "kill", "%s"), off: true, length: func(s system) time.Duration { return cmp.Or(s.slow/2, 6*time.Second) }},
		{name: "freeze", text: "it freezes", orders: once("fault", "pause", "%s"), length: func(s system) time.Duration { return cmp.Or(s.slow, 6*time.Second) }},
		{name: "cut", text: "its cable is cut", orders: once("fault", "cut", "%s"), length: func(s system) time.Duration { return cmp.Or(s.slow, 6*time.Second) }},
		{name: "api-kill", text: "its API server is killed", orders: once("fault", "kill", "%s/kube-apiserver"), length: func(s system) time.Duration { return cmp.Or(s.slow/2, 6*time.Second) }},
		{name: "api-freeze", text: "its API server freezes", orders: once("fault", "pause", "%s/kube-apiserver"), length: func(s system) time.Duration { return cmp.Or(s.slow, 6*time.Second) }},
		{name: "etcd-freeze", text: "its etcd freezes, and its API server is not ready", orders: once("fault", "pause", "%s/etcd"), length: func(s system) time.Duration { return cmp.Or(s.slow, 10*time.Second) }},
		// For kuorum alone: the others' balancers do not start with their machines.
		{name: "roll", text: "it is rebooted in order, and then the two others", orders: everyServer, length: func(system) time.Duration { return 90 * time.Second }},
	}
}
