package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/host"
)

const ms = time.Millisecond

func TestFsyncOf(t *testing.T) {
	var times []time.Duration
	for i := range 200 {
		times = append(times, time.Duration(i+1)*ms)
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(times), func(i, j int) { times[i], times[j] = times[j], times[i] })
	for _, tc := range []struct {
		times []time.Duration
		want  Fsync
	}{
		{times, Fsync{Writes: 200, P50: 100 * ms, P99: 198 * ms, Max: 200 * ms}},
		{[]time.Duration{3 * ms}, Fsync{Writes: 1, P50: 3 * ms, P99: 3 * ms, Max: 3 * ms}},
		{[]time.Duration{3 * ms, ms}, Fsync{Writes: 2, P50: ms, P99: 3 * ms, Max: 3 * ms}},
		{nil, Fsync{}},
	} {
		if diff := cmp.Diff(tc.want, fsyncOf(tc.times)); diff != "" {
			t.Errorf("of %d:\n%s", len(tc.times), diff)
		}
	}
}

func TestMeasureFsync(t *testing.T) {
	dir := t.TempDir()
	f, err := MeasureFsync(t.Context(), dir+"/not/yet")
	if err != nil || f.Writes == 0 || f.P50 > f.P99 || f.P99 > f.Max || f.P50 <= 0 {
		t.Errorf("got %+v, %v", f, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("stop"))
	if _, err := MeasureFsync(ctx, dir); err == nil || err.Error() != "stop" {
		t.Errorf("stopped: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestJudgements has the state of everything that was measured in figures.
func TestJudgements(t *testing.T) {
	speed := func(p99, election time.Duration) Check {
		return DiskSpeed(Fsync{Writes: 200, P50: ms, P99: p99, Max: p99}, nil, election)
	}
	denied, broken := fmt.Errorf("cannot: %w", fs.ErrPermission), errors.New("broken")
	ports := []Port{{"tcp", netip.MustParseAddrPort("0.0.0.0:2380"), "etcd"}, {"udp", netip.MustParseAddrPort("0.0.0.0:8472"), "VXLAN"}}
	for _, tc := range []struct {
		name  string
		check Check
		want  State
		text  string // in what it says
	}{
		{"a good disk", speed(10*ms, time.Second), StateOK, "p99 10ms"},
		{"a slow disk", speed(10*ms+1, time.Second), StateWarning, "10ms is good"},
		{"a disk at the limit", speed(100*ms, time.Second), StateWarning, "p99 100ms"},
		{"a bad disk", speed(101*ms, 0), StateFailed, "100ms endangers the leader"},
		{"a bad disk for short elections", speed(21*ms, 200*ms), StateFailed, "20ms endangers the leader"},
		{"a disk that may not be written", DiskSpeed(Fsync{}, denied, 0), StateSkipped, "needs root"},
		{"a disk with errors", DiskSpeed(Fsync{}, syscall.EIO, 0), StateFailed, "input/output error"},

		{"a clock that is kept", Clock(host.Clock{Synchronised: true, MaxError: 12 * ms}, nil), StateOK, "off by 12ms at most"},
		{"a clock that nobody keeps", Clock(host.Clock{}, nil), StateWarning, "NTP"},
		{"a clock that is not told", Clock(host.Clock{}, broken), StateFailed, "broken"},

		{"VXLAN", VXLAN(nil), StateOK, ""},
		{"no VXLAN", VXLAN(syscall.EOPNOTSUPP), StateFailed, "modprobe vxlan"},
		{"VXLAN without rights", VXLAN(syscall.EPERM), StateSkipped, "needs root"},
		{"a disk for overlays", OverlayDisk("/d", nil), StateOK, "/d"},
		{"a disk without overlays", OverlayDisk("/d", syscall.EINVAL), StateFailed, "/d carries no overlay"},
		{"overlays without rights", OverlayDisk("/d", syscall.EPERM), StateSkipped, "needs root"},

		{"free ports", PortsFree(ports, nil, nil), StateOK, "2 of 2 free"},
		{"a taken port", PortsFree(ports, ports[:1], nil), StateFailed, "2380/tcp (etcd)"},
		{"ports without rights", PortsFree(ports, nil, denied), StateSkipped, "needs root"},

		{"a clock like the others", Offsets(reports(0, time.Second, -900*ms), "n0"), StateOK, "n1 +1.0 s, n2 -0.9 s"},
		{"a clock ahead", Offsets(reports(0, -1100*ms, 0), "n0"), StateWarning, "this machine and n1 differ by 1.1s"},
		{"a clock far away", Offsets(reports(0, 0, 6*time.Minute), "n0"), StateFailed, "n2 differ by 6m0s"},
		{"one's own clock", Offsets(reports(time.Hour), "n0"), StateSkipped, "no other node answers"},
		{"silent nodes", Offsets([]cluster.NodeReport{{Name: "n1", ClockOffset: cluster.Duration(time.Hour)}}, "n0"), StateSkipped, "no other node"},
	} {
		c := tc.check
		said := strings.Join([]string{c.Measured, c.What, c.Do}, "\n")
		if c.State != tc.want || !strings.Contains(said, tc.text) || c.Name == "" || c.Why == "" || c.Measured == "" {
			t.Errorf("%s: got %+v, want %s with %q", tc.name, c, tc.want, tc.text)
		}
		if (c.Problem() != nil) != (c.State == StateFailed) {
			t.Errorf("%s: the problem is %v", tc.name, c.Problem())
		}
	}
}

func reports(offsets ...time.Duration) []cluster.NodeReport {
	var list []cluster.NodeReport
	for i, d := range offsets {
		list = append(list, cluster.NodeReport{Name: fmt.Sprintf("n%d", i), Status: &cluster.NodeStatus{}, ClockOffset: cluster.Duration(d)})
	}
	return list
}

func TestPortsHeld(t *testing.T) {
	at := netip.MustParseAddrPort
	port := []Port{{"tcp", at("198.18.0.11:2380"), "etcd"}}
	for _, tc := range []struct {
		name string
		held []host.Listener
		want State
	}{
		{"by the node", []host.Listener{{Network: "tcp", Address: at("198.18.0.11:2380")}}, StateOK},
		{"at every address", []host.Listener{{Network: "tcp", Address: at("[::]:2380")}}, StateOK},
		{"at another address", []host.Listener{{Network: "tcp", Address: at("127.0.0.1:2380")}}, StateFailed},
		{"another port", []host.Listener{{Network: "tcp", Address: at("198.18.0.11:2381")}}, StateFailed},
		{"another protocol", []host.Listener{{Network: "udp", Address: at("198.18.0.11:2380")}}, StateFailed},
		{"not at all", nil, StateFailed},
	} {
		if c := PortsHeld(port, tc.held, nil); c.State != tc.want || tc.want == StateFailed && c.What != "nobody listens on 2380/tcp (etcd)" {
			t.Errorf("%s: %+v", tc.name, c)
		}
	}
}

// TestTryPorts finds the one port that is taken.
func TestTryPorts(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ports := []Port{{"tcp", netip.MustParseAddrPort("127.0.0.1:0"), "free"}, {"tcp", netip.MustParseAddrPort(ln.Addr().String()), "taken"}}
	taken, err := TryPorts(t.Context(), ports)
	if err != nil || len(taken) != 1 || taken[0].Program != "taken" {
		t.Errorf("got %v, %v", taken, err)
	}
}

func TestNetwork(t *testing.T) {
	good := Way{Name: "cp2", Ports: 3, Tries: 5, Min: ms, Max: 2 * ms}
	with := func(closed ...Closed) Way {
		w := good
		w.Name, w.Closed = "cp3", closed
		return w
	}
	for _, tc := range []struct {
		name string
		ways []Way
		want State
		text string
	}{
		{"all good", []Way{good}, StateOK, "cp2 1ms to 2ms"},
		{"alone", nil, StateSkipped, "no other server"},
		{"a firewall", []Way{good, with(Closed{Port: 9443})}, StateFailed, "does not reach cp3 at port 9443"},
		{"a firewall that refuses some", []Way{with(Closed{Port: 6444, Refused: true}, Closed{Port: 9443})}, StateFailed, "port 6444 and 9443"},
		{"a server that is off", []Way{good, {Name: "cp3", Ports: 3, Closed: []Closed{{Port: 2380}, {Port: 6444}, {Port: 9443}}}}, StateWarning, "cp3 cannot be reached at all"},
		{"a component that is down", []Way{with(Closed{Port: 6444, Refused: true})}, StateWarning, "nobody listens on cp3 at port 6444"},
		{"a long way", []Way{{Name: "cp2", Ports: 3, Tries: 5, Min: ms, Max: 101 * ms}}, StateWarning, "longer than a heartbeat of 100ms"},
	} {
		c := Network(tc.ways, 100*ms)
		if c.State != tc.want || !strings.Contains(c.Measured+c.What, tc.text) {
			t.Errorf("%s: %+v", tc.name, c)
		}
	}
}

// TestMeasureWays measures real connections: one server that listens, and one
// where nobody does.
func TestMeasureWays(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	port := func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
	defer ln.Close()
	nodes := []cluster.Node{{Name: "a", Address: "127.0.0.1"}, {Name: "b", Address: "127.0.0.1"}}
	for _, w := range MeasureWays(t.Context(), nodes, []int{port(ln), port(closed)}) {
		want := []Closed{{Port: port(closed), Refused: true}}
		if w.Tries != 5 || w.Min <= 0 || w.Max < w.Min || w.Ports != 2 || cmp.Diff(want, w.Closed) != "" {
			t.Errorf("got %+v", w)
		}
	}
	ways := MeasureWays(t.Context(), nodes[:1], []int{port(closed), port(ln)})
	if len(ways) != 1 || ways[0].Tries != 0 || len(ways[0].Closed) != 1 || ways[0].String() != "a no answer" || LongestRTT(ways) != 0 {
		t.Errorf("got %+v", ways)
	}
}

func TestTimers(t *testing.T) {
	timers := func(heartbeat, election time.Duration) cluster.Etcd {
		return cluster.Etcd{Heartbeat: cluster.Duration(heartbeat), ElectionTimeout: cluster.Duration(election)}
	}
	for _, tc := range []struct {
		name       string
		now        cluster.Etcd
		rtt, fsync time.Duration
		want       State
		text       string
	}{
		{"the default where it could be less", timers(100*ms, time.Second), ms, 8 * ms, StateOK, "5.0 times as fast"},
		{"as advised", timers(20*ms, 200*ms), ms, 8 * ms, StateOK, "could be 20ms, 200ms"},
		{"too short for the network", timers(20*ms, 200*ms), 21 * ms, ms, StateWarning, "heartbeat: 25ms, electionTimeout: 250ms"},
		{"too short for the disk", timers(20*ms, 200*ms), ms, 90 * ms, StateWarning, "heartbeat: 90ms, electionTimeout: 900ms"},
		{"a short election", timers(20*ms, 100*ms), ms, ms, StateWarning, "shorter than"},
	} {
		if c := Timers(tc.now, tc.rtt, tc.fsync); c.State != tc.want || !strings.Contains(c.Measured+c.What+c.Do, tc.text) {
			t.Errorf("%s: %+v", tc.name, c)
		}
	}
	told := []cluster.NodeReport{{}, {Status: &cluster.NodeStatus{Etcd: &cluster.EtcdStatus{FsyncP99: cluster.Duration(7 * ms)}}}}
	if got := SlowestFsync(3*ms, told); got != 7*ms {
		t.Errorf("the slowest disk: %v", got)
	}
	if got := SlowestFsync(9*ms, told); got != 9*ms {
		t.Errorf("the slowest disk is this one: %v", got)
	}
}
