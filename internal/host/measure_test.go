package host

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// noRest fails when a measurement left anything in dir.
func noRest(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in %s: %v, %v", dir, entries, err)
	}
}

func TestFsyncTimes(t *testing.T) {
	dir := t.TempDir()
	times, err := FsyncTimes(t.Context(), dir, 5)
	if err != nil || len(times) != 5 || slices.Min(times) <= 0 {
		t.Errorf("got %v, %v", times, err)
	}
	noRest(t, dir)

	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if times, err := FsyncTimes(ctx, dir, 1000); !errors.Is(err, stop) || len(times) > 0 {
		t.Errorf("stopped: %v, %v", times, err)
	}
	noRest(t, dir)
	if _, err := FsyncTimes(t.Context(), filepath.Join(dir, "no"), 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestWhatTheKernelSays(t *testing.T) {
	if release, err := KernelRelease(); err != nil || !strings.Contains(release, ".") {
		t.Errorf("release %q, %v", release, err)
	}
	if clock, err := ReadClock(); err != nil || clock.MaxError < 0 {
		t.Errorf("clock %+v, %v", clock, err)
	}
}

// TestTriesLeaveNothing: what is made to try the kernel is not seen outside.
func TestTriesLeaveNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("must run as root: namespaces need it")
	}
	look := func() string {
		links, err := os.ReadDir("/sys/class/net")
		mounts, errMounts := os.ReadFile("/proc/self/mountinfo")
		if err := errors.Join(err, errMounts); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, l := range links {
			names = append(names, l.Name())
		}
		return strings.Join(names, " ") + "\n" + string(mounts)
	}
	before, dir := look(), t.TempDir()
	if err := TryOverlay(dir); err != nil {
		t.Errorf("overlay: %v", err)
	}
	noRest(t, dir)
	if err := TryVXLAN(); err != nil {
		t.Errorf("VXLAN: %v", err)
	}
	if diff := cmp.Diff(before, look()); diff != "" {
		t.Errorf("links or mounts have changed:\n%s", diff)
	}
	if err := TryOverlay("/proc"); err == nil {
		t.Error("an overlay was written in /proc")
	}
	noRest(t, dir)
}

func TestParseListeners(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue\n"
	for _, tc := range []struct {
		network, lines string
		want           []string
	}{
		{"tcp", "   0: 0100007F:18EB 00000000:0000 0A 0\n", []string{"127.0.0.1:6379"}},
		{"tcp", "   0: 0B0012C6:094C 00000000:0000 0A 0\n   1: 0B0012C6:094C 0C0012C6:D2F0 01 0\n", []string{"198.18.0.11:2380"}},
		{"tcp", "   0: 00000000000000000000000000000000:192B 00000000000000000000000000000000:0000 0A 0\n", []string{"[::]:6443"}},
		{"tcp", "   0: 0000000000000000FFFF00000100007F:192B 00000000000000000000000000000000:0000 0A 0\n", []string{"127.0.0.1:6443"}},
		{"tcp", "   0: B80D01200000000000000000010000FE:0035 0:0 0A 0\n", []string{"[2001:db8::fe00:1]:53"}},
		{"udp", "10900: 00000000:2118 00000000:0000 07 0\n10901: 00000000:2119 00000000:0000 01 0\n", []string{"0.0.0.0:8472"}},
		{"tcp", "   0: 0100007F 0:0 0A\n   1: xyz:1 0:0 0A\n   2: 01:1 0:0 0A\n short\n", nil},
	} {
		var got []string
		for _, l := range parseListeners(tc.network, []byte(head+tc.lines)) {
			got = append(got, l.Address.String())
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%q:\n%s", tc.lines, diff)
		}
	}
}

// TestPortsOnThisMachine: a port that is held is in the list and cannot be
// taken; one that was tried is free again.
func TestPortsOnThisMachine(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	tcp, udp := ln.Addr().String(), conn.LocalAddr().String()
	all, err := Listeners()
	if err != nil {
		t.Fatal(err)
	}
	for network, address := range map[string]string{"tcp": tcp, "udp": udp} {
		if !slices.Contains(all, Listener{Network: network, Address: netip.MustParseAddrPort(address)}) {
			t.Errorf("%s %s is not in the list", network, address)
		}
		if err := TryListen(t.Context(), network, address); err == nil {
			t.Errorf("%s %s was taken twice", network, address)
		}
	}
	_, port, _ := strings.Cut(tcp, ":")
	if err := TryListen(t.Context(), "tcp", "0.0.0.0:"+port); err == nil {
		t.Error("a port of one address was taken for all")
	}
	_ = ln.Close()
	for range 2 {
		if err := TryListen(t.Context(), "tcp", "169.254.99.99:"+port); err != nil {
			t.Errorf("an address that is still to come: %v", err)
		}
	}
}

func TestFileSystem(t *testing.T) {
	const mounts = `22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:30 / /var rw shared:1 - xfs /dev/vdb rw
31 30 0:31 / /var/lib/kuorum rw - overlay overlay rw
32 30 0:32 / /var/lib/kuorum rw - btrfs /dev/vdc rw
bad line
`
	for path, want := range map[string]string{
		"/": "ext4", "/home/x": "ext4", "/var": "xfs", "/var/lib": "xfs", "/variable": "ext4",
		"/var/lib/kuorum": "btrfs", "/var/lib/kuorum/etcd": "btrfs", "/var/lib/kuorum2": "xfs",
	} {
		if got := FileSystem([]byte(mounts), path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if got := FileSystem(nil, "/"); got != "" {
		t.Errorf("no mounts: %q", got)
	}
}

func TestExisting(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{dir: dir, dir + "/not/yet": dir, "/": "/"} {
		if got := Existing(path); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
}

func TestControllers(t *testing.T) {
	unified := t.TempDir()
	if err := os.WriteFile(filepath.Join(unified, "cgroup.controllers"), []byte("cpuset cpu io memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Controllers([]Hierarchy{{Options: "cpu,cpuacct"}, {Options: "none,name=systemd"}, {Options: "memory"}, {Mount: unified, V2: true}})
	if diff := cmp.Diff([]string{"cpu", "cpuacct", "cpuset", "io", "memory", "pids"}, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if _, err := Controllers([]Hierarchy{{Mount: unified + "/no", V2: true}}); err == nil {
		t.Error("a hierarchy that is not there has controllers")
	}
}

func TestLastExchange(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = far.Close() }()
	speak := func(from, to net.Conn) {
		if _, err := from.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := to.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	look := func() Exchange {
		last, err := LastExchange(near.(syscall.Conn))
		if err != nil {
			t.Fatal(err)
		}
		return last
	}
	speak(far, near)
	for look().Received < 20*time.Millisecond {
		runtime.Gosched() // the kernel's clock is what is waited for
	}
	speak(near, far)
	if last := look(); last.Sent >= last.Received {
		t.Errorf("spoke last, and the kernel says %+v", last)
	}
	for look().Sent < 20*time.Millisecond {
		runtime.Gosched()
	}
	speak(far, near)
	if last := look(); last.Received >= last.Sent {
		t.Errorf("was answered, and the kernel says %+v", last)
	}
	_ = near.Close()
	if _, err := LastExchange(near.(syscall.Conn)); err == nil {
		t.Error("a closed connection is told about")
	}
}

// TestReceive: what was sent is read as it is there, up to the buffer; who waits holds
// none, and the end is told apart from a failure.
func TestReceive(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	far, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = far.Close() })
	near, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	raw, err := near.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var held atomic.Int32
	receive := func() (string, error) {
		data, err := Receive(raw, func() []byte { held.Add(1); return make([]byte, 4) }, func([]byte) { held.Add(-1) })
		return string(data), err
	}
	time.AfterFunc(30*time.Millisecond, func() {
		if n := held.Load(); n != 0 {
			t.Errorf("who waits holds %d buffers", n)
		}
		_, _ = far.Write([]byte("abcdef"))
		_ = far.(*net.TCPConn).CloseWrite()
	})
	for _, want := range []string{"abcd", "ef", ""} {
		if ended, err := Await(raw); err != nil || ended != (want == "") {
			t.Errorf("before %q: ended is %v, %v", want, ended, err)
		}
		if got, err := receive(); err != nil || got != want {
			t.Errorf("received %q, want %q, %v", got, want, err)
		}
	}
	_ = near.Close()
	if got, err := receive(); err == nil {
		t.Errorf("received %q of a connection that is closed", got)
	}
	if _, err := Await(raw); err == nil {
		t.Error("a connection that is closed is waited for")
	}
	if n := held.Load(); n != 3 {
		t.Errorf("%d buffers are held, want those of three answers", n)
	}
}
