package etcd

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// page renders buckets of 1, 2 and 4 seconds and +Inf with these counts.
func page(counts ...int) string {
	var b strings.Builder
	b.WriteString("# TYPE etcd_disk_wal_fsync_duration_seconds histogram\n")
	for i, bound := range []string{"1", "2", "4", "+Inf"}[:len(counts)] {
		fmt.Fprintf(&b, "etcd_disk_wal_fsync_duration_seconds_bucket{le=%q} %d\n", bound, counts[i])
	}
	b.WriteString("etcd_disk_wal_fsync_duration_seconds_sum 12.5\n")
	return b.String()
}

func parsed(t *testing.T, counts ...int) Histogram {
	t.Helper()
	m, err := ParseMetrics(strings.NewReader(page(counts...)))
	mustDo(t, err)
	return m.Fsync
}

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		counts []int
		q      float64
		want   time.Duration
	}{
		{[]int{0, 0, 0, 0}, 0.99, 0},
		{[]int{100, 100, 100, 100}, 0.99, 990 * time.Millisecond},
		{[]int{100, 100, 100, 100}, 0.5, 500 * time.Millisecond},
		{[]int{100, 100, 100, 100}, 0, 0},
		{[]int{98, 100, 100, 100}, 0.99, 1500 * time.Millisecond},
		{[]int{98, 100, 100, 100}, 1, 2 * time.Second},
		{[]int{0, 0, 100, 100}, 0.5, 3 * time.Second},
		{[]int{0, 0, 100, 100}, 0, 2 * time.Second},
		{[]int{0, 0, 0, 5}, 0.99, 4 * time.Second}, // all that is known
		{[]int{98, 98, 98, 100}, 0.99, 4 * time.Second},
		{[]int{100, 100, 100, 100}, 7, time.Second},
		{[]int{100, 100, 100, 100}, -7, 0},
		{[]int{100, 100, 100, 100}, math.NaN(), 0},
	} {
		if got := parsed(t, test.counts...).Quantile(test.q); got != test.want {
			t.Errorf("quantile %v of %v is %v, want %v", test.q, test.counts, got, test.want)
		}
	}
	if got := (Histogram{}).Quantile(0.99); got != 0 {
		t.Errorf("quantile of nothing is %v", got)
	}
}

func TestSub(t *testing.T) {
	for name, test := range map[string]struct {
		now, older []int
		want       []int
	}{
		"since":                       {[]int{10, 20, 30, 40}, []int{1, 2, 3, 4}, []int{9, 18, 27, 36}},
		"nothing new":                 {[]int{1, 2, 3, 4}, []int{1, 2, 3, 4}, []int{0, 0, 0, 0}},
		"etcd started again":          {[]int{1, 2, 3, 4}, []int{1, 2, 3, 5}, []int{1, 2, 3, 4}},
		"pages read while it counted": {[]int{10, 11, 12, 12}, []int{5, 8, 8, 8}, []int{5, 5, 5, 5}},
	} {
		got := parsed(t, test.now...).Sub(parsed(t, test.older...))
		if diff := cmp.Diff(parsed(t, test.want...), got, cmp.AllowUnexported(Histogram{}, bucket{})); diff != "" {
			t.Errorf("%s differs (-want +got):\n%s", name, diff)
		}
	}
	now := parsed(t, 1, 2, 3, 4)
	if diff := cmp.Diff(now, now.Sub(Histogram{}), cmp.AllowUnexported(Histogram{}, bucket{})); diff != "" {
		t.Errorf("since nothing differs (-want +got):\n%s", diff)
	}
}

func TestParseMetricsTakesWhatPrometheusWrites(t *testing.T) {
	m, err := ParseMetrics(strings.NewReader("x 1\n" +
		`etcd_network_peer_round_trip_time_seconds_bucket{To="8211f1d0f64f3269",le="0.0001"} 0` + "\n" +
		`etcd_network_peer_round_trip_time_seconds_bucket{To="8211f1d0f64f3269",le="+Inf"} 3` + "\n" +
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 1.5e+06` + "\n" +
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 2e+06 1700000000000` + "\n"))
	mustDo(t, err)
	want := Histogram{buckets: []bucket{{0.001, 1_500_000}, {math.Inf(1), 2_000_000}}}
	rtt := map[string]Histogram{"8211f1d0f64f3269": {buckets: []bucket{{0.0001, 0}, {math.Inf(1), 3}}}}
	if diff := cmp.Diff(Metrics{Fsync: want, PeerRTT: rtt}, m, cmp.AllowUnexported(Histogram{}, bucket{})); diff != "" {
		t.Errorf("metrics differ (-want +got):\n%s", diff)
	}
}

func TestParseMetricsRefusesNonsense(t *testing.T) {
	line := func(le, count string) string { return fsyncBuckets + le + `"} ` + count + "\n" }
	end := line("+Inf", "9")
	for name, text := range map[string]string{
		"nothing":        "",
		"other metrics":  "etcd_server_has_leader 1\n",
		"no end":         line("1", "1"),
		"no value":       fsyncBuckets + `1"}` + "\n" + end,
		"cut off":        fsyncBuckets + `1`,
		"negative":       line("1", "-1") + end,
		"half a count":   line("1", "1.5") + end,
		"not a number":   line("1", "NaN") + end,
		"too many":       line("1", "1e300") + end,
		"no bound":       line("x", "1") + end,
		"negative bound": line("-1", "1") + end,
		"bound NaN":      line("NaN", "1") + end,
		"bounds descend": line("2", "1") + line("1", "1") + end,
		"bound twice":    line("1", "1") + line("1", "1") + end,
		"counts descend": line("1", "10") + end,
		"a peer's end":   end + rttBuckets + `a",le="1"} 1`,
		"a peer's bound": end + rttBuckets + `a",le="x"} 1`,
		"endless line":   strings.Repeat("x", 1<<17),
	} {
		if h, err := ParseMetrics(strings.NewReader(text)); err == nil {
			t.Errorf("%s: took it for %+v", name, h)
		}
	}
}

// FuzzParseMetrics holds that whatever is taken gives quantiles that are no
// nonsense.
func FuzzParseMetrics(f *testing.F) {
	f.Add(page(0, 0, 0, 0), page(0, 0, 0, 0))
	f.Add(page(1, 2, 3, 4), page(1, 1, 2, 3))
	f.Add(page(98, 98, 98, 100), page(99, 99, 99, 99))
	f.Add(page(1), "")
	f.Add(fsyncBuckets+`+Inf"} 1`, fsyncBuckets+`+Inf"} 1`)
	f.Add(fsyncBuckets+`1e300"} 1`+"\n"+fsyncBuckets+`+Inf"} 2`, page(1, 2, 3, 4))
	f.Add(fsyncBuckets+`0.001"} 1.5e+06 17`+"\n"+fsyncBuckets+`+Inf"} 2e+06`, "\x00")
	f.Fuzz(func(t *testing.T, now, older string) {
		m, err := ParseMetrics(strings.NewReader(now))
		if err != nil {
			return
		}
		h := m.Fsync
		before, _ := ParseMetrics(strings.NewReader(older))
		since := h.Sub(before.Fsync)
		if err := since.check(); err != nil {
			t.Errorf("the difference makes no sense: %v", err)
		}
		if n, total := len(h.buckets)-1, since.buckets[len(since.buckets)-1].count; total > h.buckets[n].count {
			t.Errorf("%d samples since, %d in all", total, h.buckets[n].count)
		}
		for _, h := range []Histogram{h, since} {
			last := time.Duration(0)
			for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
				got := h.Quantile(q)
				if got < last {
					t.Errorf("quantile %v is %v, a smaller one was %v", q, got, last)
				}
				last = got
			}
		}
	})
}
