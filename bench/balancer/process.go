package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// userHZ is the unit of times in /proc/PID/stat (USER_HZ, proc(5)).
const userHZ = 10 * time.Millisecond

// haproxyConfig is for what passes through only: the kernel moves the bytes
// (splice), checks are as frequent as ours ask /readyz, and a server that is down
// loses its sessions, as with ours. Threads: one a processor, as ours.
const haproxyConfig = `global
    maxconn 4000
defaults
    mode tcp
    option splice-auto
    option redispatch
    retries 2
    timeout connect 1s
    timeout client 1h
    timeout server 1h
    timeout check 1s
    default-server inter 2s fastinter 500ms downinter 500ms fall 2 rise 1 on-marked-down shutdown-sessions
frontend apiserver
    bind %s
    default_backend apiservers
backend apiservers
    option httpchk
    http-check connect ssl
    http-check send meth GET uri /readyz
    http-check expect status 200
    balance leastconn
%s
frontend health
    mode http
    timeout client 10s
    bind %s
    http-request return status 200 content-type text/plain string ok if { nbsrv(apiservers) eq %d }
    http-request deny status 503
`

// start runs servers and balancers, and waits until all know each other.
func (b *bench) start(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "balancer-"); err != nil {
		return err
	}
	b.ends = append(b.ends, func() { _ = os.RemoveAll(b.dir) })
	if err := makeCertificate(b.dir); err != nil {
		return err
	}
	if b.tls {
		if b.dialer, err = newDialer(filepath.Join(b.dir, caFile)); err != nil {
			return err
		}
	}
	servers, err := b.startServers(ctx)
	if err != nil {
		return err
	}
	free, err := freeAddresses(4)
	if err != nil {
		return err
	}
	own := &way{name: ours, address: free[0], health: "http://" + free[1] + "/status"}
	other := &way{name: theirs, address: free[2], health: "http://" + free[3] + "/"}
	b.ways = []*way{{name: direct, address: servers[0]}, own, other}
	file, err := b.config("endpoint.yaml", ourConfig(own.address, free[1], filepath.Join(b.dir, caFile), servers))
	if err != nil {
		return err
	}
	if own.pid, err = b.begin(exec.CommandContext(ctx, b.kuorum, "endpoint", "--config", file)); err != nil {
		return fmt.Errorf("%w: run make build first", err)
	}
	var list []string
	for i, address := range servers {
		list = append(list, fmt.Sprintf("    server s%d %s check verify none", i, address))
	}
	if file, err = b.config("haproxy.cfg", fmt.Sprintf(haproxyConfig, other.address, strings.Join(list, "\n"), free[3], serverCount)); err != nil {
		return err
	}
	if other.pid, err = b.begin(exec.CommandContext(ctx, b.haproxy, "-db", "-q", "-f", file)); err != nil { // one process, in the foreground
		return fmt.Errorf("%w: apt install haproxy", err)
	}
	return b.await(ctx)
}

func ourConfig(listen, status, ca string, servers []string) string {
	config := map[string]any{"listen": []string{listen}, "status": status, "ca": ca}
	var backends []map[string]string
	for i, address := range servers {
		backends = append(backends, map[string]string{"name": fmt.Sprintf("s%d", i), "address": address})
	}
	config["backends"] = backends
	text, _ := json.Marshal(config) // strings all
	return string(text)
}

func (b *bench) config(name, text string) (file string, err error) {
	file = filepath.Join(b.dir, name)
	return file, os.WriteFile(file, []byte(text), 0o600)
}

// begin starts a process that stop ends.
func (b *bench) begin(cmd *exec.Cmd) (pid int, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	b.ends = append(b.ends, func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd.Process.Pid, nil
}

func (b *bench) stop() {
	for _, end := range slices.Backward(b.ends) {
		end()
	}
}

func (b *bench) startServers(ctx context.Context) (addresses []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "servers", b.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if _, err := b.begin(cmd); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(out); len(addresses) < serverCount && lines.Scan(); {
		addresses = append(addresses, lines.Text())
	}
	if len(addresses) < serverCount {
		return nil, errors.New("the servers do not start")
	}
	return addresses, nil
}

// freeAddresses are of the loopback; nobody listens there at this moment.
func freeAddresses(n int) (addresses []string, err error) {
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		addresses = append(addresses, ln.Addr().String())
	}
	return addresses, nil
}

func (b *bench) await(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := b.healthy(limited)
		if err == nil {
			return nil
		}
		select {
		case <-limited.Done():
			return err
		case <-tick.C:
		}
	}
}

// healthy is nil while both balancers find all servers well.
func (b *bench) healthy(ctx context.Context) error {
	for _, w := range b.ways {
		if w.health == "" {
			continue
		}
		if err := w.healthy(ctx); err != nil {
			return fmt.Errorf("%s does not find all servers well: %w", w.name, err)
		}
	}
	return nil
}

func (w *way) healthy(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.health, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	if w.name != ours {
		return nil
	}
	var list []struct {
		Name      string
		Healthy   bool
		LastError string
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return err
	}
	for _, s := range list {
		if !s.Healthy {
			return fmt.Errorf("%s: %s", s.Name, s.LastError)
		}
	}
	return nil
}

// cpu is what the balancer has used since its start, all threads together, in steps
// of 10 ms. Of no balancer it is 0.
func (w *way) cpu() (time.Duration, error) {
	if w.pid == 0 {
		return 0, nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", w.pid))
	if err != nil {
		return 0, err
	}
	const user, system = 11, 12 // after the name, which is in brackets and may have blanks
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) <= system {
		return 0, fmt.Errorf("cannot read the times of process %d", w.pid)
	}
	sum := 0
	for _, i := range []int{user, system} {
		ticks, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, fmt.Errorf("cannot read the times of process %d: %w", w.pid, err)
		}
		sum += ticks
	}
	return time.Duration(sum) * userHZ, nil
}
