// Command lab measures labs on this machine, as root, with what `make build`
// left in bin: how long `kuorum up` takes, step by step, what an idle lab uses,
// how long a server takes to join or be replaced, how long `kuorum status`
// takes, how much its etcd writes beside a bare one, and what it takes for a failure on
// a busy machine. It prints the rows of docs/benchmarks.md.
//
//	go run ./bench/lab up   [-n 5] [-servers 3]
//	go run ./bench/lab idle [-settle 5m] [-for 60s] [-servers 3]
//	go run ./bench/lab change [-n 5] [-servers 3]
//	go run ./bench/lab status [-n 5]
//	go run ./bench/lab write [-n 5] [-for 10s]
//	go run ./bench/lab calm [-for 30m]
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"kuorum/internal/host"
)

// bench is one lab of the benchmark's own: nobody's kubeconfig is touched.
type bench struct {
	name    string
	servers int
	group   *host.Cgroup

	hierarchies []host.Hierarchy
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: up, idle, change, status, write or calm")
	}
	if args[0] == "load" { // write calls itself so, also on a machine of the lab
		return load(args[1:])
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	n := flags.Int("n", 5, "runs")
	servers := flags.Int("servers", 3, "servers of the lab")
	settle := flags.Duration("settle", 5*time.Minute, "wait before measuring an idle lab")
	length := flags.Duration("for", time.Minute, "how long to measure an idle lab, to write, or to be busy")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	hierarchies, err := host.MountedHierarchies()
	if err != nil {
		return err
	}
	b := bench{name: "bench", servers: *servers, group: host.NewCgroup(hierarchies, "/kuorum/bench"), hierarchies: hierarchies}
	defer func() { _, _ = b.kuorum("down", b.name) }()
	switch args[0] {
	case "up":
		return b.up(*n)
	case "idle":
		return b.idle(*settle, *length)
	case "change":
		return b.change(*n)
	case "status":
		return b.status(*n)
	case "write":
		return b.write(*n, *length)
	case "calm":
		return b.calm(*length)
	}
	return fmt.Errorf("unknown measurement %q", args[0])
}

func (b bench) kuorum(args ...string) (string, error) {
	cmd := exec.Command("bin/kuorum", args...)
	var talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = os.Stderr, &talk
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("kuorum %v: %w\n%s", args, err, talk.String())
	}
	return talk.String(), err
}

func (b bench) start() (string, error) {
	return b.kuorum("up", b.name, "--servers", strconv.Itoa(b.servers), "--no-kubeconfig")
}

// up brings the lab up and down n times.
func (b bench) up(n int) error {
	figures := map[string][]float64{}
	stepLine := regexp.MustCompile(`^\S+ (.*) \(([0-9.]+)s\)$`)
	for range n {
		begin := time.Now()
		talk, err := b.start()
		if err != nil {
			return err
		}
		figures["wall, s"] = append(figures["wall, s"], time.Since(begin).Seconds())
		cpu, err := b.group.CPU()
		if err != nil {
			return err
		}
		figures["CPU of the lab, s"] = append(figures["CPU of the lab, s"], cpu.Seconds())
		for line := range strings.Lines(talk) {
			if m := stepLine.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
				seconds, _ := strconv.ParseFloat(m[2], 64) // the pattern is a number
				figures["step: "+m[1]] = append(figures["step: "+m[1]], seconds)
			}
		}
		if _, err := b.kuorum("down", b.name); err != nil {
			return err
		}
	}
	table(fmt.Sprintf("%d servers, %d runs", b.servers, n), figures)
	return nil
}

// idle starts the lab and measures it when it has settled.
func (b bench) idle(settle, length time.Duration) error {
	if _, err := b.start(); err != nil {
		return err
	}
	<-time.After(settle)
	before, err := b.group.CPU()
	if err != nil {
		return err
	}
	<-time.After(length)
	after, err := b.group.CPU()
	if err != nil {
		return err
	}
	fmt.Printf("%d servers, idle for %v: %.3f cores over %v\n\n", b.servers, settle, (after-before).Seconds()/length.Seconds(), length)
	return b.memory()
}

// memory prints the proportional set size of every program, all of its
// processes together: pages that several share are counted once.
func (b bench) memory() error {
	kib, count := map[string]int{}, map[string]int{}
	total := 0
	for _, pid := range b.group.PIDs() {
		name, size, err := process(pid)
		if err != nil {
			continue // it has ended
		}
		kib[name] += size
		count[name]++
		total += size
	}
	fmt.Println("| program | processes | PSS, MiB |\n|---|---|---|")
	names := slices.SortedFunc(maps.Keys(kib), func(x, y string) int { return cmp.Compare(kib[y], kib[x]) })
	for _, name := range names {
		fmt.Printf("| %s | %d | %.1f |\n", name, count[name], float64(kib[name])/1024)
	}
	fmt.Printf("| all | %d | %.1f |\n", len(b.group.PIDs()), float64(total)/1024)
	return nil
}

func process(pid int) (name string, kib int, err error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return "", 0, err
	}
	argv := strings.Split(string(line), "\x00")
	name = filepath.Base(argv[0])
	if name == "kuorum" {
		name += " " + argv[1]
	}
	rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return "", 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(rollup))
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "Pss:" {
			kib, err = strconv.Atoi(fields[1])
			return name, kib, err
		}
	}
	return "", 0, fmt.Errorf("process %d has no PSS", pid)
}
