package endpoint

import (
	"testing"
	"time"

	"kuorum/internal/host"
)

func TestPace(t *testing.T) {
	const ms = time.Millisecond
	type answer struct{ at, took time.Duration }
	tests := map[string]struct {
		answers []answer
		at      time.Duration
		want    time.Duration
	}{
		"nothing seen":            {nil, 0, leastLimit},
		"quick":                   {[]answer{{0, ms}, {1, 2 * ms}}, time.Second, leastLimit},
		"the slowest counts":      {[]answer{{0, 100 * ms}, {1, 90 * ms}}, time.Second, 300 * ms},
		"no longer than the most": {[]answer{{0, 800 * ms}}, time.Second, time.Second},
		"still after a period":    {[]answer{{0, 100 * ms}, {lately, ms}}, lately + time.Second, 300 * ms},
		"not for ever":            {[]answer{{0, 100 * ms}, {lately, ms}}, 2*lately + time.Second, leastLimit},
		"nothing for long":        {[]answer{{0, 100 * ms}}, time.Hour, leastLimit},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var p pace
			start := time.Now()
			for _, a := range tt.answers {
				p.note(a.took, start.Add(a.at))
			}
			if got := p.limit(start.Add(tt.at), time.Second); got != tt.want {
				t.Errorf("limit is %v, want %v", got, tt.want)
			}
		})
	}
}

func TestUnanswered(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]struct {
		sent, received, alive time.Duration
		want                  bool
	}{
		"speaks, and hears nothing":         {5 * ms, 50 * ms, time.Second, true},
		"waits, but not for long":           {5 * ms, 30 * ms, time.Second, false},
		"has its answer":                    {60 * ms, 50 * ms, time.Second, false},
		"both in the same tick":             {50 * ms, 50 * ms, time.Second, true},
		"a watch, quiet since it was alive": {700 * ms, 900 * ms, 400 * ms, false},
		"nothing said for an hour":          {time.Hour, time.Hour, time.Second, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := unanswered(host.Exchange{Sent: tt.sent, Received: tt.received}, tt.alive); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
