package cli

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
	"kuorum/internal/history"
)

// TestRemembered: servers and etcd nodes are asked, workers are not, and who does not
// answer is named, in the order of cluster.yaml.
func TestRemembered(t *testing.T) {
	spec, err := cluster.NewApart("demo", 1, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ask := func(silent ...string) func(context.Context, cluster.Node) (history.Account, error) {
		return func(_ context.Context, n cluster.Node) (history.Account, error) {
			if n.Role == cluster.RoleWorker {
				t.Errorf("%s was asked", n.Name)
			}
			for _, name := range silent {
				if name == n.Name || name == "all" {
					return history.Account{}, errors.New("it is off")
				}
			}
			return history.Account{Changes: []history.Change{{At: now, What: history.Scheduler, To: "cp1", Term: 1, By: n.Name}}}, nil
		}
	}
	lines, silent, err := remembered(t.Context(), spec, ask("cp2", "cp1"))
	if err != nil || len(lines) != 1 || lines[0].To != "cp1" || len(lines[0].SeenBy) != 2 {
		t.Errorf("got %+v, %v", lines, err)
	}
	if diff := cmp.Diff("cp1 does not tell what it remembers: it is off;cp2 does not tell what it remembers: it is off", strings.Join(silent, ";")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, _, err := remembered(t.Context(), spec, ask("all")); exitOf(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), "it is off") {
		t.Errorf("nobody answers: %v", err)
	}
}

func TestWriteHistory(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	var out strings.Builder
	writeHistory(&out, []history.Line{
		{At: at, What: "etcd", To: "cp1", Why: "elected in term 2"},
		{At: at.Add(time.Minute), What: "vip", From: "cp1", To: "cp2", Nobody: cluster.Duration(31 * time.Millisecond), Why: "shut down; the active router resigned"},
		{At: at.Add(time.Hour), What: "scheduler", From: "cp1"},
	})
	want := "TIME\tWHAT\tFROM\tTO\tNOBODY FOR\tWHY\n" +
		"2026-01-02 03:04:05.678\tetcd\t-\tcp1\t-\telected in term 2\n" +
		"2026-01-02 03:05:05.678\tvip\tcp1\tcp2\t31ms\tshut down; the active router resigned\n" +
		"2026-01-02 04:04:05.678\tscheduler\tcp1\tnobody\t-\t-\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestHistoryOfOne: what is printed is what was asked for; the names of the fields are
// API.
func TestHistoryOfOne(t *testing.T) {
	a, out, talk := testApp(t, nil)
	lines := []history.Line{
		{At: time.Unix(1, 0).UTC(), What: "etcd", To: "cp1", Term: 2, SeenBy: []string{"cp1"}},
		{At: time.Unix(2, 0).UTC(), What: "vip", From: "cp1", To: "cp2", Nobody: cluster.Duration(time.Second), Why: "shut down", SeenBy: []string{"cp1", "cp2"}},
	}
	if err := a.printHistory(lines, pastLeaders{what: "vip"}, "json"); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Kind  string
		Items []map[string]any
	}
	if err := json.Unmarshal([]byte(out()), &got); err != nil {
		t.Fatal(err)
	}
	want := []map[string]any{{
		"at": "1970-01-01T00:00:02Z", "what": "vip", "from": "cp1", "to": "cp2", "nobody": "1s", "why": "shut down", "seenBy": []any{"cp1", "cp2"},
	}}
	if diff := cmp.Diff(want, got.Items); diff != "" || got.Kind != "LeaderChangeList" {
		t.Errorf("%s (-want +got):\n%s", got.Kind, diff)
	}
	if err := a.printHistory([]history.Line{{What: "etcd"}}, pastLeaders{what: "vip"}, "table"); err != nil || !strings.Contains(talk(), "no change is remembered") {
		t.Errorf("nothing to print: %v, %q", err, talk())
	}
	off := target{reports: func(context.Context) ([]cluster.NodeReport, error) { return nil, errors.New("it is off") }}
	if err := a.leadersBefore(t.Context(), off, pastLeaders{}, "table"); err == nil || err.Error() != "it is off" {
		t.Errorf("a cluster that cannot be asked: %v", err)
	}
}
