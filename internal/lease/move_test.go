package lease

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// threeServers are cp1 to cp3 and a worker, all ready.
func threeServers(t *testing.T) (*cluster.Spec, []cluster.NodeReport) {
	t.Helper()
	spec, err := cluster.New("demo", 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	var reports []cluster.NodeReport
	for _, n := range spec.Spec.Nodes {
		r := cluster.NodeReport{Name: n.Name, Role: n.Role, Status: &cluster.NodeStatus{Name: n.Name}}
		if n.Role == cluster.RoleServer {
			r.Status.Components = []cluster.ComponentStatus{{Name: "etcd", Phase: "backoff"}, {Name: cluster.SchedulerName, Phase: "ready"}}
		}
		reports = append(reports, r)
	}
	return spec, reports
}

func TestHeir(t *testing.T) {
	starting := func(r *cluster.NodeReport) { r.Status.Components[1].Phase = "starting" }
	off := func(r *cluster.NodeReport) { r.Status, r.Error = nil, "the machine is off" }
	for name, tc := range map[string]struct {
		leader, to string
		program    string
		change     func(reports []cluster.NodeReport)
		want       string
		code       int
		says       string
	}{
		"the first of the others":            {leader: "cp1", want: "cp2"},
		"the first":                          {leader: "cp3", want: "cp1"},
		"nobody leads":                       {want: "cp1"},
		"the first is off":                   {leader: "cp2", change: func(r []cluster.NodeReport) { off(&r[0]) }, want: "cp3"},
		"the first is starting":              {leader: "cp2", change: func(r []cluster.NodeReport) { starting(&r[0]) }, want: "cp3"},
		"all others are not ready":           {leader: "cp2", change: func(r []cluster.NodeReport) { off(&r[0]); starting(&r[2]) }, code: cluster.ExitRefused, says: "cp1 does not answer: the machine is off; kube-scheduler of cp3 is starting"},
		"a wish":                             {leader: "cp1", to: "cp3", want: "cp3"},
		"a wish for the leader":              {leader: "cp1", to: "cp1", want: "cp1"},
		"a wish for one that is off":         {leader: "cp1", to: "cp3", change: func(r []cluster.NodeReport) { off(&r[2]) }, code: cluster.ExitRefused, says: "the machine is off"},
		"a wish for one that is starting":    {leader: "cp1", to: "cp2", change: func(r []cluster.NodeReport) { starting(&r[1]) }, code: cluster.ExitRefused, says: "is starting"},
		"a wish for one without the program": {leader: "cp1", to: "cp2", program: cluster.ControllerManagerName, code: cluster.ExitRefused, says: "cp2 has no kube-controller-manager"},
		"a wish for a worker":                {leader: "cp1", to: "w1", code: cluster.ExitUsage, says: "its servers are cp1, cp2, cp3"},
		"a wish for nobody":                  {leader: "cp1", to: "cp9", code: cluster.ExitUsage, says: `"cp9" is no server of cluster demo`},
	} {
		t.Run(name, func(t *testing.T) {
			spec, reports := threeServers(t)
			if tc.change != nil {
				tc.change(reports)
			}
			if tc.program == "" {
				tc.program = cluster.SchedulerName
			}
			n, err := Heir(spec, reports, Order{Program: tc.program, To: tc.to}, tc.leader)
			problem, refused := errors.AsType[*cluster.Problem](err)
			switch {
			case tc.code == 0 && (err != nil || n.Name != tc.want):
				t.Errorf("got %q, %v", n.Name, err)
			case tc.code != 0 && (!refused || problem.ExitCode() != tc.code || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("got %v, want %q and exit code %d", err, tc.says, tc.code)
			}
		})
	}
}

// TestOver plays the others' part by the clock.
func TestOver(t *testing.T) {
	const leads = "cp1_a"
	cannot := errors.New("no answer")
	for name, tc := range map[string]struct {
		holder string
		to     string
		taken  map[time.Duration]string // after the release
		asked  error                    // of the standby
		want   string
		steps  []string
		took   time.Duration
		says   string
		code   int
	}{
		"it takes over":         {leads, "cp2", map[time.Duration]string{690 * time.Millisecond: "cp2_b"}, nil, "cp2", []string{"ends", "standby", "starts"}, 700 * time.Millisecond, "", 0},
		"a third is quicker":    {leads, "cp2", map[time.Duration]string{290 * time.Millisecond: "cp3_b"}, nil, "cp3", []string{"ends", "standby", "starts"}, 300 * time.Millisecond, "", 0},
		"nobody takes over":     {leads, "cp2", nil, nil, "", []string{"ends", "standby", "starts"}, 5 * time.Second, "cp2 has not taken the lead of kube-scheduler within 5s", cluster.ExitTimeout},
		"it cannot be asked":    {leads, "cp2", nil, cannot, "", []string{"ends", "standby", "starts"}, 0, "no answer", cluster.ExitRefused},
		"another leads":         {"cp3_a", "cp2", nil, nil, "cp3", nil, 0, "", 0},
		"it leads already":      {"cp2_a", "cp2", nil, nil, "cp2", nil, 0, "", 0},
		"it is to go to itself": {leads, "cp1", nil, nil, "cp1", nil, 0, "", 0},
		"nobody leads":          {"", "cp2", nil, nil, "", nil, 0, "", 0},
		"it takes its own back": {leads, "cp2", map[time.Duration]string{time.Second: "cp1_z", 1990 * time.Millisecond: "cp2_b"}, nil, "cp2", []string{"ends", "standby", "starts"}, 2 * time.Second, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				s := held(tc.holder, began.Add(-time.Hour), began)
				var steps []string
				h := Hand{
					Self: "cp1", Program: cluster.SchedulerName, Election: scheduler, API: s,
					Restart: func(ctx context.Context, program string, between func(context.Context) error) error {
						if program != cluster.SchedulerName {
							t.Errorf("restarts %s", program)
						}
						steps = append(steps, "ends")
						s.take("", time.Now())
						for after, who := range tc.taken {
							time.AfterFunc(after, func() { s.take(who, time.Now()) })
						}
						err := between(ctx)
						steps = append(steps, "starts")
						return err
					},
					Standby: func(context.Context) error {
						steps = append(steps, "standby")
						return tc.asked
					},
				}
				leader, err := h.Over(t.Context(), tc.to)
				if leader != tc.want || (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %q, %v", leader, err)
				}
				if problem, ok := errors.AsType[*cluster.Problem](err); tc.code != 0 && (!ok || problem.Exit != tc.code) {
					t.Errorf("the exit code of %v is not %d", err, tc.code)
				}
				if diff := cmp.Diff(tc.steps, steps); diff != "" {
					t.Errorf("steps (-want +got):\n%s", diff)
				}
				if d := time.Since(began); d != tc.took {
					t.Errorf("took %v, want %v", d, tc.took)
				}
			})
		})
	}
}
