package advise

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"kuorum/internal/cluster"
)

func TestTimers(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		rtt, fsync time.Duration
		heartbeat  time.Duration
		reason     string
	}{
		{100 * time.Microsecond, 8 * ms, 20 * ms, "shorter than 20ms was not stable"},
		{100 * time.Microsecond, 17 * ms, 20 * ms, "shorter than 20ms was not stable"},
		{20 * ms, 20 * ms, 20 * ms, "shorter than 20ms was not stable"},
		{20*ms + 1, ms, 25 * ms, "time between the members (20ms)"},
		{ms, 21 * ms, 25 * ms, "waits for its disk (fsync p99 21ms)"},
		{80 * ms, 30 * ms, 80 * ms, "time between the members (80ms)"},
		{30 * ms, 80 * ms, 80 * ms, "waits for its disk"},
		{0, ms, 20 * ms, "between the members is not known"},
		{ms, 0, 20 * ms, "an fsync is not known"},
		{ms, 6 * time.Second, 5 * time.Second, "too slow or too far apart"},
		{1 << 62, 1 << 62, 5 * time.Second, "too slow or too far apart"},
	} {
		got := Timers(tc.rtt, tc.fsync)
		if got.Heartbeat != tc.heartbeat || got.Election != 10*tc.heartbeat || !strings.Contains(strings.Join(got.Reasons, "\n"), tc.reason) {
			t.Errorf("rtt %v, fsync %v: got %+v, want %v because of %q", tc.rtt, tc.fsync, got, tc.heartbeat, tc.reason)
		}
	}
}

// TestTimersAreTaken: whatever is measured, cluster.yaml takes the advice, and
// with it no disk or network is worse than the advice allows.
func TestTimersAreTaken(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		rtt := time.Duration(random.Int64N(int64(time.Second)))
		fsync := time.Duration(random.Int64N(int64(time.Second)))
		a := Timers(rtt, fsync)
		if a.Heartbeat < rtt || a.Heartbeat < fsync || a.Heartbeat < 20*time.Millisecond || a.Heartbeat > max(rtt, fsync, 20*time.Millisecond)+5*time.Millisecond {
			t.Fatalf("rtt %v, fsync %v: a heartbeat of %v", rtt, fsync, a.Heartbeat)
		}
		spec, err := cluster.New("x", 3, 0)
		if err != nil {
			t.Fatal(err)
		}
		spec.Spec.Etcd.Heartbeat, spec.Spec.Etcd.ElectionTimeout = cluster.Duration(a.Heartbeat), cluster.Duration(a.Election)
		if err := spec.Validate(); err != nil {
			t.Fatalf("rtt %v, fsync %v: %v", rtt, fsync, err)
		}
	}
}

func TestFsyncBad(t *testing.T) {
	for election, want := range map[time.Duration]time.Duration{
		0: 100 * time.Millisecond, time.Second: 100 * time.Millisecond, 200 * time.Millisecond: 20 * time.Millisecond, time.Minute: 100 * time.Millisecond,
	} {
		if got := FsyncBad(election); got != want {
			t.Errorf("an election of %v: %v, want %v", election, got, want)
		}
	}
}

func TestSlowest(t *testing.T) {
	w := wellWorld(t, 3, 0)
	w.etcd("cp1").FsyncP99, w.etcd("cp1").PeerRTT = cluster.Duration(9*time.Millisecond), cluster.Duration(time.Millisecond)
	w.etcd("cp2").FsyncP99, w.etcd("cp2").PeerRTT = cluster.Duration(4*time.Millisecond), cluster.Duration(3*time.Millisecond)
	w.lose("cp3")
	if rtt, fsync := Slowest(ReviewEtcd(w.spec, w.reports, noon())); rtt != 3*time.Millisecond || fsync != 9*time.Millisecond {
		t.Errorf("got rtt %v, fsync %v", rtt, fsync)
	}
}
