package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/host"
	"kuorum/internal/pki"
)

const (
	writers     = 100 // at the same time
	connections = 10  // that they share, spread over the members
	valueBytes  = 256
	keys        = 10_000
	state       = "/var/lib/kuorum"
)

// write compares the write rate of the lab's etcd with that of three bare ones:
// the same program and flags, the same disk, but on the host's loopback and with
// upstream's environment. Both run all the time and are measured in turns.
func (b bench) write(n int, length time.Duration) error {
	if _, err := b.start(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	home := filepath.Join(state, "labs", b.name)
	pid, err := os.ReadFile(filepath.Join(home, "lab.pid")) // its network is the machines' switch
	if err != nil {
		return err
	}
	var bare bareEtcd
	defer bare.stop()
	if err := bare.start(b); err != nil {
		return err
	}
	figures := map[string][]float64{}
	for range n {
		args := append([]string{"-t", strings.TrimSpace(string(pid)), "-n", self, "load"}, loadFlags(filepath.Join(home, "clients"), "198.18.0.%d", b.servers, length)...)
		inLab, err := rate(exec.Command("nsenter", args...))
		if err != nil {
			return err
		}
		alone, err := rate(exec.Command(self, append([]string{"load"}, loadFlags(bare.dir, "127.0.77.%d", b.servers, length)...)...))
		if err != nil {
			return err
		}
		for i, what := range []string{"writes/s", "latency p50, ms", "latency p99, ms"} {
			figures["lab, "+what] = append(figures["lab, "+what], inLab[i])
			figures["bare, "+what] = append(figures["bare, "+what], alone[i])
		}
		figures["ratio of the writes"] = append(figures["ratio of the writes"], inLab[0]/alone[0])
	}
	table(fmt.Sprintf("%d members, %d writers, %d runs of %v", b.servers, writers, n, length), figures)
	return nil
}

func loadFlags(certificates, addresses string, members int, length time.Duration) []string {
	var endpoints []string
	for i := range members {
		endpoints = append(endpoints, "https://"+fmt.Sprintf(addresses, 11+i)+":2379")
	}
	return []string{"-certificates", certificates, "-endpoints", strings.Join(endpoints, ","), "-for", length.String()}
}

// rate runs a load and reads what it says.
func rate(cmd *exec.Cmd) (figures [3]float64, err error) {
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return figures, fmt.Errorf("%v: %w", cmd.Args, err)
	}
	_, err = fmt.Sscan(string(out), &figures[0], &figures[1], &figures[2])
	return figures, err
}

// bareEtcd is etcd's members on addresses of the loopback, with data on the file
// system that labs are on, each in a control group as a machine's is: the
// processors are shared out by them.
type bareEtcd struct {
	dir     string // with the certificates for clients
	running []*exec.Cmd
	groups  []*host.Cgroup
}

// stop removes all of it, also of what did not start completely.
func (e *bareEtcd) stop() {
	for _, cmd := range e.running {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	_ = os.RemoveAll(e.dir)
	for _, group := range slices.Backward(e.groups) {
		group.RemoveIfEmpty()
	}
}

func (e *bareEtcd) start(b bench) (err error) {
	if e.dir, err = os.MkdirTemp(state, "bench-"); err != nil {
		return err
	}
	unpacked, err := filepath.Glob(filepath.Join(state, "bundle/*/bin/etcd"))
	if err != nil || len(unpacked) == 0 {
		return fmt.Errorf("there is no unpacked bundle in %s", state)
	}
	spec, err := cluster.New("bare", b.servers, 0)
	if err != nil {
		return err
	}
	for i := range spec.Spec.Nodes {
		spec.Spec.Nodes[i].Address = fmt.Sprintf("127.0.77.%d", 11+i)
	}
	set, err := pki.NewSet(time.Now())
	if err != nil {
		return err
	}
	if err := e.writeClient(set); err != nil {
		return err
	}
	e.groups = append(e.groups, host.NewCgroup(b.hierarchies, "/kuorum/bare"))
	for _, n := range spec.Spec.Nodes {
		cmd, err := bareMember(set, spec, n, unpacked[0], filepath.Join(e.dir, n.Name))
		if err != nil {
			return err
		}
		if err := e.startMember(cmd, host.NewCgroup(b.hierarchies, "/kuorum/bare/"+n.Name)); err != nil {
			return err
		}
	}
	return nil
}

func (e *bareEtcd) writeClient(set *pki.Set) error {
	client, err := set.EtcdClientPair("bench", time.Now())
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(e.dir, "etcd-ca.crt"), set.Etcd.Pair().Cert, 0o600),
		os.WriteFile(filepath.Join(e.dir, "etcd.crt"), client.Cert, 0o600),
		os.WriteFile(filepath.Join(e.dir, "etcd.key"), client.Key, 0o600),
	)
}

func (e *bareEtcd) startMember(cmd *exec.Cmd, group *host.Cgroup) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	e.running = append(e.running, cmd)
	e.groups = append(e.groups, group)
	return errors.Join(group.Create(), group.Add(cmd.Process.Pid))
}

// bareMember is etcd with the flags of a lab's, but for where things are.
func bareMember(set *pki.Set, spec *cluster.Spec, n cluster.Node, program, dir string) (*exec.Cmd, error) {
	files, err := set.NodeFiles(spec, n, time.Now())
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, f.Data, 0o600)); err != nil {
			return nil, err
		}
	}
	machine := component.Machine{Spec: spec, Node: n, Initial: component.Founders(spec)}
	parts := component.For(machine)
	i := slices.IndexFunc(parts, func(c component.Component) bool { return c.Name == "etcd" })
	elsewhere := strings.NewReplacer(
		component.EtcDir, dir, component.VarDir, filepath.Join(dir, "var"),
		","+component.EtcdClient, "", component.EtcdMetrics, "http://"+n.Address+":2381")
	cmd := exec.Command(program)
	for _, arg := range parts[i].Args {
		cmd.Args = append(cmd.Args, elsewhere.Replace(arg))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

// load writes for a while and prints writes a second, and their latency's median
// and p99 in milliseconds.
func load(args []string) error {
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	certificates := flags.String("certificates", "", "directory of etcd-ca.crt, etcd.crt and etcd.key")
	endpoints := flags.String("endpoints", "", "of all members")
	length := flags.Duration("for", 10*time.Second, "how long")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config, err := clientTLS(*certificates)
	if err != nil {
		return err
	}
	members := strings.Split(*endpoints, ",")
	var clients []*clientv3.Client
	for i := range connections {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{members[i%len(members)]}, TLS: config, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }() // all has been written by then
		clients = append(clients, c)
	}
	if err := warm(clients); err != nil {
		return err
	}
	times, err := writeFor(clients, *length)
	if err != nil {
		return err
	}
	slices.Sort(times)
	ms := func(share int) float64 { return times[len(times)*share/100].Seconds() * 1000 }
	fmt.Println(float64(len(times))/length.Seconds(), ms(50), ms(99))
	return nil
}

func clientTLS(dir string) (*tls.Config, error) {
	var data [3][]byte
	for i, name := range []string{"etcd-ca.crt", "etcd.crt", "etcd.key"} {
		var err error
		if data[i], err = os.ReadFile(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	return pki.EtcdClientTLS(data[0], pki.Pair{Cert: data[1], Key: data[2]})
}

// warm waits until each member takes a write.
func warm(clients []*clientv3.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, c := range clients {
		for {
			_, err := c.Put(ctx, "/bench/warm", "x")
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return err
			}
		}
	}
	return nil
}

func writeFor(clients []*clientv3.Client, length time.Duration) ([]time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	value := strings.Repeat("v", valueBytes)
	var group sync.WaitGroup
	took, errs := make([][]time.Duration, writers), make([]error, writers)
	for i := range writers {
		group.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				_, err := clients[i%len(clients)].Put(ctx, fmt.Sprintf("/bench/%d", rand.N(keys)), value)
				if err == nil {
					took[i] = append(took[i], time.Since(begin))
				} else if ctx.Err() == nil {
					errs[i] = err // a leader was lost, or the disk stood still: it is no write
				}
			}
		})
	}
	group.Wait()
	all := slices.Concat(took...)
	if len(all) == 0 {
		return nil, errors.Join(errs...)
	}
	return all, nil
}
