package endpoint

import (
	"testing"
	"time"
)

func TestHealthNext(t *testing.T) {
	tests := map[string]struct {
		from       State
		verdicts   []verdict
		fall, rise int
		want       State
	}{
		"first good answer":              {Unknown, []verdict{ready}, 2, 1, Healthy},
		"first refusal":                  {Unknown, []verdict{refused}, 2, 1, Refused},
		"first silence decides nothing":  {Unknown, []verdict{silent}, 2, 1, Unknown},
		"healthy is lost at once":        {Healthy, []verdict{lost}, 2, 1, Down},
		"unknown falls":                  {Unknown, []verdict{silent, silent}, 2, 1, Down},
		"one silence is forgiven":        {Healthy, []verdict{silent, ready, silent}, 2, 1, Healthy},
		"two in a row are not":           {Healthy, []verdict{silent, silent}, 2, 1, Down},
		"three wanted":                   {Healthy, []verdict{silent, silent}, 3, 1, Healthy},
		"refusal counts at once":         {Healthy, []verdict{refused}, 5, 1, Refused},
		"not ready counts at once":       {Healthy, []verdict{unready}, 5, 1, Draining},
		"not ready interrupts silence":   {Healthy, []verdict{silent, unready, silent}, 2, 1, Draining},
		"ill counts at once":             {Healthy, []verdict{ill}, 5, 1, Draining},
		"draining falls silent":          {Draining, []verdict{silent, silent}, 2, 1, Down},
		"draining stops":                 {Draining, []verdict{refused}, 2, 1, Refused},
		"back at once":                   {Down, []verdict{ready}, 2, 1, Healthy},
		"back after three":               {Down, []verdict{ready, ready}, 2, 3, Down},
		"back after three, no more":      {Refused, []verdict{ready, ready, ready}, 2, 3, Healthy},
		"rise must be in a row":          {Down, []verdict{ready, silent, ready}, 2, 2, Down},
		"healthy stays, whatever rise":   {Healthy, []verdict{silent, ready}, 2, 3, Healthy},
		"silence after refusal is worse": {Refused, []verdict{silent, silent}, 2, 1, Down},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := health{state: tt.from}
			for _, v := range tt.verdicts {
				h = h.next(v, tt.fall, tt.rise, time.Unix(1, 0))
			}
			if h.state != tt.want {
				t.Errorf("state is %s, want %s", h.state, tt.want)
			}
		})
	}
}

func TestHealthSinceIsTheLastChange(t *testing.T) {
	h := health{state: Unknown}
	h = h.next(ready, 2, 1, time.Unix(1, 0))
	h = h.next(ready, 2, 1, time.Unix(2, 0))
	if !h.since.Equal(time.Unix(1, 0)) {
		t.Errorf("since is %v, a second good answer must not move it", h.since)
	}
	if h = h.next(unready, 2, 1, time.Unix(3, 0)); !h.since.Equal(time.Unix(3, 0)) {
		t.Errorf("since is %v after a change", h.since)
	}
}

func TestOverdue(t *testing.T) {
	const drain = 30 * time.Second
	at := func(second int64) time.Time { return time.Unix(second, 0) }
	now := at(1000)
	tests := map[string]struct {
		state  State
		since  time.Time
		better time.Time
		want   bool
	}{
		"healthy":                       {Healthy, at(1), at(1), false},
		"unknown":                       {Unknown, at(1), at(1), false},
		"down":                          {Down, at(999), at(999), true},
		"down without alternative":      {Down, at(1), time.Time{}, false},
		"draining for 29 s":             {Draining, at(971), at(1), false},
		"draining for 30 s":             {Draining, at(970), at(1), true},
		"alternative for 29 s":          {Draining, at(1), at(971), false},
		"draining without alternative":  {Draining, at(1), time.Time{}, false},
		"refused for 30 s":              {Refused, at(970), at(970), true},
		"refused for 29 s":              {Refused, at(971), at(970), false},
		"refused without alternative":   {Refused, at(1), time.Time{}, false},
		"draining, alternative as long": {Draining, at(970), at(970), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := health{state: tt.state, since: tt.since}
			if got := h.overdue(now, tt.better, drain); got != tt.want {
				t.Errorf("overdue is %v, want %v", got, tt.want)
			}
		})
	}
}
