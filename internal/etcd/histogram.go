package etcd

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Histogram counts durations since a member started, as Prometheus does: by
// upper bounds. The zero value has no samples.
type Histogram struct {
	buckets []bucket // ascending; none is below the one before it; the last bound is +Inf
}

// bucket counts the samples of at most so many seconds.
type bucket struct {
	bound float64
	count uint64
}

// parseBucket reads the rest of a line: `0.001"} 42`, maybe with a timestamp.
func parseBucket(rest string) (bucket, error) {
	bound, value, ok := strings.Cut(rest, `"}`)
	fields := strings.Fields(value)
	if !ok || len(fields) == 0 {
		return bucket{}, errors.New("it has no value")
	}
	le, err := strconv.ParseFloat(bound, 64)
	if err != nil {
		return bucket{}, err
	}
	count, err := strconv.ParseFloat(fields[0], 64) // large ones look like 1.5e+06
	if err != nil {
		return bucket{}, err
	}
	if !(le > 0) || !(count >= 0 && count < 1<<53) || count != math.Trunc(count) {
		return bucket{}, errors.New("it is not a count of durations")
	}
	return bucket{bound: le, count: uint64(count)}, nil
}

func (h Histogram) check() error {
	n := len(h.buckets)
	if n == 0 {
		return errors.New("there are none")
	}
	if !math.IsInf(h.buckets[n-1].bound, 1) {
		return errors.New("the last bucket has a bound")
	}
	for i := 1; i < n; i++ {
		if cmp.Compare(h.buckets[i-1].bound, h.buckets[i].bound) >= 0 || h.buckets[i-1].count > h.buckets[i].count {
			return errors.New("the buckets do not ascend")
		}
	}
	return nil
}

// Sub is what came since older was read. When older has more, the member has
// started again in between, and all it has is new.
func (h Histogram) Sub(older Histogram) Histogram {
	if len(h.buckets) != len(older.buckets) {
		return h
	}
	since := Histogram{buckets: slices.Clone(h.buckets)}
	for i, old := range older.buckets {
		b := &since.buckets[i]
		if b.bound != old.bound || b.count < old.count {
			return h
		}
		b.count -= old.count
		// A page is not read in one moment: each bucket may be a bit newer
		// than the one before it, which must not show as falling counts.
		if i > 0 {
			b.count = max(b.count, since.buckets[i-1].count)
		}
	}
	return since
}

// Quantile is the time that the share q (0 to 1) of the samples did not exceed,
// as Prometheus estimates it: within a bucket they are taken to be spread
// evenly, and beyond the last bound nothing is known but that bound. It is 0
// when there are no samples.
func (h Histogram) Quantile(q float64) time.Duration {
	n := len(h.buckets)
	if n < 2 || h.buckets[n-1].count == 0 || math.IsNaN(q) {
		return 0
	}
	rank := min(max(q, 0), 1) * float64(h.buckets[n-1].count)
	i := slices.IndexFunc(h.buckets, func(b bucket) bool { return b.count > 0 && float64(b.count) >= rank })
	if i == n-1 {
		return seconds(h.buckets[n-2].bound)
	}
	var low bucket
	if i > 0 {
		low = h.buckets[i-1]
	}
	high := h.buckets[i]
	within := (rank - float64(low.count)) / float64(high.count-low.count)
	return seconds(low.bound + (high.bound-low.bound)*max(within, 0))
}

// seconds stays within what a Duration can hold.
func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(s * float64(time.Second))
}
