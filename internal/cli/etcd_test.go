package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/advise"
	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
)

// threeMembers are cp1 to cp3 with the IDs a1 to a3; cp2 leads. Every file has
// 64 MiB, half of them free, of a quota of 100 MiB.
func threeMembers() advise.Etcd {
	e := advise.Etcd{Known: true, State: cluster.StateHealthy, Leader: "cp2"}
	for i := range 3 {
		m := advise.Member{
			EtcdMember: cluster.EtcdMember{ID: fmt.Sprintf("a%d", i+1), Name: fmt.Sprintf("cp%d", i+1), PeerURLs: []string{fmt.Sprintf("https://198.18.0.1%d:2380", i+1)}},
			Label:      fmt.Sprintf("cp%d", i+1), Node: fmt.Sprintf("cp%d", i+1), State: advise.MemberFollower, Healthy: true,
			Status: &cluster.EtcdStatus{
				ID: fmt.Sprintf("a%d", i+1), Leader: "a2", Version: "3.6.16", Term: 4, RaftIndex: 1000, AppliedIndex: 1000,
				DBBytes: 64 << 20, DBUsedBytes: 32 << 20, QuotaBytes: 100 << 20,
			},
		}
		if i == 1 {
			m.State = advise.MemberLeader
		}
		e.Members = append(e.Members, m)
	}
	return e
}

// fail makes a member one that does not answer.
func fail(m *advise.Member) {
	m.Status, m.Healthy, m.State, m.Why = nil, false, advise.MemberDown, "does not answer: it is off"
}

func learn(m *advise.Member) {
	m.Learner, m.State = true, advise.MemberLearner
	if m.Status != nil {
		m.Status.Learner = true
	}
}

func exitOf(err error) int {
	if err == nil {
		return 0
	}
	if problem, ok := errors.AsType[*cluster.Problem](err); ok {
		return problem.ExitCode()
	}
	return cluster.ExitError
}

func TestChooseMember(t *testing.T) {
	e := threeMembers()
	e.Members = append(e.Members,
		advise.Member{EtcdMember: cluster.EtcdMember{ID: "a4"}, Label: "cp3"}, // added for cp3, never started
		advise.Member{EtcdMember: cluster.EtcdMember{ID: "a5"}, Label: "a5"},
	)
	for _, tc := range []struct {
		word, id, says string
	}{
		{"cp1", "a1", ""},
		{"a2", "a2", ""},
		{"A2", "a2", ""},
		{"0x00a2", "a2", ""},
		{"a5", "a5", ""},
		{"a3", "a3", ""},
		{"cp3", "", "they are a3 and a4"},
		{"cp4", "", "its members are cp1 (a1), cp2 (a2), cp3 (a3), cp3 (a4), a5"},
		{"", "", "etcd has no member"},
		{"0", "", "etcd has no member"},
	} {
		m, err := chooseMember(e, tc.word)
		if m.ID != tc.id || tc.says == "" && err != nil || tc.says != "" && (exitOf(err) != cluster.ExitUsage || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%q: got %q, %v", tc.word, m.ID, err)
		}
	}
	for i := range e.Members {
		fail(&e.Members[i])
	}
	e.Known = false
	if _, err := chooseMember(e, "cp1"); exitOf(err) != cluster.ExitNoQuorum || !strings.Contains(err.Error(), "cp2 does not answer: it is off") {
		t.Errorf("nobody answers: %v", err)
	}
}

func TestRemovalIsGuarded(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*advise.Etcd)
		remove int
		sum    string
		code   int
		heir   string
	}{
		{"a follower", func(*advise.Etcd) {}, 0, "2 voters, quorum 2, may lose 0", 0, ""},
		{"the leader", func(*advise.Etcd) {}, 1, "2 voters, quorum 2, may lose 0", 0, "cp1"},
		{"the one that is off", func(e *advise.Etcd) { fail(&e.Members[2]) }, 2, "2 voters, quorum 2, may lose 0", 0, ""},
		{"another while one is off", func(e *advise.Etcd) { fail(&e.Members[2]) }, 0, "2 voters, 1 healthy, quorum 2, no quorum", cluster.ExitRefused, ""},
		{"a learner while one is off", func(e *advise.Etcd) { fail(&e.Members[2]); learn(&e.Members[0]) }, 0, "2 voters, 1 healthy, quorum 2, no quorum", 0, ""},
		{"the last", func(e *advise.Etcd) { e.Members = e.Members[1:2] }, 0, "0 voters, quorum 1, no quorum", cluster.ExitRefused, ""},
		{"the last that is off", func(e *advise.Etcd) { e.Members = e.Members[1:2]; fail(&e.Members[0]) }, 0, "0 voters, quorum 1, no quorum", cluster.ExitRefused, ""},
		{"one of two with one name", func(e *advise.Etcd) { e.Members[0].Label = "cp3" }, 0, "2 voters, quorum 2, may lose 0", 0, ""},
	} {
		e := threeMembers()
		tc.change(&e)
		m := e.Members[tc.remove]
		before, after := removalSums(e, m)
		if err := guardRemoval(m, before, after); exitOf(err) != tc.code || after.String() != tc.sum {
			t.Errorf("%s: %v, %s", tc.name, err, after)
		}
		if heir, ok := heirOf(e, m); heir.Label != tc.heir || ok != (tc.heir != "") {
			t.Errorf("%s: the heir is %q", tc.name, heir.Label)
		}
	}
}

func TestDefragPlan(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*advise.Etcd)
		words  []string
		order  defragOrder
		want   string
		code   int
	}{
		{"all", func(*advise.Etcd) {}, nil, etcd.DefragOrder, "cp1 cp3 cp2", 0},
		{"those named", func(*advise.Etcd) {}, []string{"cp2", "a3"}, etcd.DefragOrder, "cp3 cp2", 0},
		{"it does not pay", func(e *advise.Etcd) { e.Members[0].Status.DBUsedBytes = 64 << 20 }, []string{"cp1"}, etcd.DefragOrder, "", 0},
		{"forced", func(e *advise.Etcd) { e.Members[0].Status.DBUsedBytes = 64 << 20 }, []string{"cp1"}, etcd.DefragAll, "cp1", 0},
		{"one is off", func(e *advise.Etcd) { fail(&e.Members[2]) }, nil, etcd.DefragOrder, "", cluster.ExitRefused},
		{"one is off, forced", func(e *advise.Etcd) { fail(&e.Members[2]) }, []string{"cp1"}, etcd.DefragAll, "", cluster.ExitRefused},
		{"a learner is off", func(e *advise.Etcd) { fail(&e.Members[2]); learn(&e.Members[2]) }, nil, etcd.DefragOrder, "cp1 cp2", 0},
		{"a learner is named", func(e *advise.Etcd) { learn(&e.Members[2]) }, []string{"cp3"}, etcd.DefragOrder, "", cluster.ExitUsage},
		{"two of one name", func(e *advise.Etcd) { e.Members[2].Label = "cp1" }, nil, etcd.DefragOrder, "cp1 cp1 cp2", 0},
		{"a stranger is named", func(*advise.Etcd) {}, []string{"cp9"}, etcd.DefragOrder, "", cluster.ExitUsage},
	} {
		e := threeMembers()
		tc.change(&e)
		var plan []advise.Member
		ids, err := chooseMembers(e, tc.words)
		if err == nil {
			plan, err = defragPlan(e, ids, tc.order)
		}
		var names []string
		for _, m := range plan {
			names = append(names, m.Label)
		}
		if got := strings.Join(names, " "); got != tc.want || exitOf(err) != tc.code {
			t.Errorf("%s: got %q, %v", tc.name, got, err)
		}
	}
}

func TestUnwell(t *testing.T) {
	e := threeMembers()
	e.Members[1].Status.AppliedIndex = 1007
	if got := furthest(e); got != 1007 {
		t.Errorf("the furthest is %d", got)
	}
	if got := unwell(e, 1000); got != "" {
		t.Errorf("all are well: %q", got)
	}
	if got := unwell(e, 1007); got != "cp1 is 7 entries behind" {
		t.Errorf("behind: %q", got)
	}
	fail(&e.Members[2])
	if got := unwell(e, 1000); got != "cp3 does not answer: it is off" {
		t.Errorf("off: %q", got)
	}
	learn(&e.Members[2])
	if got := unwell(e, 1000); got != "" {
		t.Errorf("a learner holds all up: %q", got)
	}
}

func TestGainText(t *testing.T) {
	before, now := threeMembers().Members[0], threeMembers()
	now.Members[0].Status.DBBytes = 16 << 20
	if got, want := gainText(before, now), "cp1 gave 48 MiB back: the file had 64 MiB and has 16 MiB"; got != want {
		t.Errorf("got %q", got)
	}
	now.Members[0].Status.DBBytes = 65 << 20
	if got, want := gainText(before, now), "cp1 gave 0 KiB back: the file had 64 MiB and has 65 MiB"; got != want {
		t.Errorf("got %q", got)
	}
	fail(&now.Members[0])
	if got := gainText(before, now); got != "cp1 is done" {
		t.Errorf("got %q", got)
	}
}

func TestCompactTo(t *testing.T) {
	for _, tc := range []struct {
		now, given, keep, want int64
		code                   int
	}{
		{5000, 0, 1000, 4000, 0},
		{1000, 0, 1000, 0, 0},
		{17, 0, 1000, 0, 0},
		{17, 0, 0, 17, 0},
		{5000, 77, 1000, 77, 0},
		{5000, 5000, 1000, 5000, 0},
		{5000, 5001, 1000, 0, cluster.ExitUsage},
	} {
		got, err := compactTo(tc.now, tc.given, tc.keep)
		if got != tc.want || exitOf(err) != tc.code {
			t.Errorf("%+v: got %d, %v", tc, got, err)
		}
	}
}

func TestDisarmable(t *testing.T) {
	noSpace := []cluster.EtcdAlarm{{Member: "a1", Kind: "NOSPACE"}, {Member: "a3", Kind: "NOSPACE"}}
	corrupt := func(id string) []cluster.EtcdAlarm { return []cluster.EtcdAlarm{{Member: id, Kind: "CORRUPT"}} }
	for _, tc := range []struct {
		name   string
		alarms []cluster.EtcdAlarm
		change func(*advise.Etcd)
		mended []cluster.EtcdAlarm
		says   string
	}{
		{"there is room", noSpace, func(*advise.Etcd) {}, noSpace, ""},
		{"just room", noSpace, func(e *advise.Etcd) { e.Members[1].Status.DBBytes = 95<<20 - 1 }, noSpace, ""},
		{"just none", noSpace, func(e *advise.Etcd) { e.Members[1].Status.DBBytes = 95 << 20 }, nil, "cp2 has 95 MiB of a quota of 100 MiB, 32 MiB of it in use"},
		{"one does not answer", noSpace, func(e *advise.Etcd) { fail(&e.Members[1]) }, nil, "how full cp2 is nobody knows: it does not answer: it is off"},
		{"one never started", noSpace, func(e *advise.Etcd) { fail(&e.Members[1]); e.Members[1].Name = "" }, noSpace, ""},
		{"damaged", corrupt("a2"), func(*advise.Etcd) {}, nil, "cp2 is still on the member list"},
		{"damaged and removed", corrupt("a9"), func(*advise.Etcd) {}, corrupt("a9"), ""},
		{"nobody knows who", corrupt("0"), func(*advise.Etcd) {}, nil, "does not know which of its members"},
		{"nobody knows who, and one is left", corrupt("0"), func(e *advise.Etcd) { e.Members = e.Members[:1] }, corrupt("0"), ""},
		{"both, and it is full", append(corrupt("a9"), noSpace...), func(e *advise.Etcd) { e.Members[0].Status.DBBytes = 99 << 20 }, corrupt("a9"), "not every database is below 95 %"},
		{"both, and one is damaged", append(noSpace, corrupt("a2")...), func(*advise.Etcd) {}, nil, "damaged data would be served"},
	} {
		e := threeMembers()
		e.Alarms = tc.alarms
		tc.change(&e)
		mended, err := disarmable(e)
		if diff := cmp.Diff(tc.mended, mended); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tc.name, diff)
		}
		if tc.says == "" && err != nil || tc.says != "" && (exitOf(err) != cluster.ExitRefused || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: got %v, want %q", tc.name, err, tc.says)
		}
	}
}

func TestCatchUpText(t *testing.T) {
	e := threeMembers()
	learn(&e.Members[2])
	e.Members[2].Status.AppliedIndex = 450
	if got := catchUpText(e, e.Members[2]); got != "cp3 has 45 % of the leader's log" {
		t.Errorf("got %q", got)
	}
	fail(&e.Members[2])
	if got := catchUpText(e, e.Members[2]); got != "cp3 has 0 % of the leader's log: it does not answer: it is off" {
		t.Errorf("got %q", got)
	}
}

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun, tries := time.Now(), 0
		err := until(t.Context(), "late", func() (string, error) {
			tries++
			return map[int]string{1: "first", 2: "second"}[tries], nil
		})
		if err != nil || tries != 3 || time.Since(begun) != 2*tryEvery {
			t.Errorf("%d tries, %v: %v", tries, time.Since(begun), err)
		}
		broken := errors.New("broken")
		if err := until(t.Context(), "late", func() (string, error) { return "", broken }); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second/2)
		defer cancel()
		err = until(ctx, "late", func() (string, error) { return "45 %", nil })
		if exitOf(err) != cluster.ExitTimeout || err.Error() != "late: 45 %" {
			t.Errorf("got %v", err)
		}
		interrupted, stop := context.WithCancelCause(t.Context())
		stop(errInterrupted)
		if err := until(interrupted, "late", func() (string, error) { return "45 %", nil }); !errors.Is(err, errInterrupted) {
			t.Errorf("got %v", err)
		}
	})
}

// TestSettled: a refusal that time heals is waited for, and told in the end.
func TestSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusal := &cluster.Problem{What: "cannot", Err: etcd.ErrUnsettled, Exit: cluster.ExitRefused}
		for _, tc := range []struct {
			refusals, tries int
			err             error
			want            int
		}{
			{0, 1, nil, 0},
			{3, 4, nil, 0},
			{99, 7, nil, cluster.ExitRefused},
			{2, 3, etcd.ErrNoMember, cluster.ExitError},
		} {
			tries := 0
			err := (&etcdWork{}).settled(t.Context(), func() error {
				if tries++; tries <= tc.refusals {
					return refusal
				}
				return tc.err
			})
			if exitOf(err) != tc.want || tries < tc.tries || tries > tc.tries+1 {
				t.Errorf("%+v: %d tries, %v", tc, tries, err)
			}
		}
	})
}

func TestPrintEtcd(t *testing.T) {
	a, out, _ := testApp(t, nil)
	e := threeMembers()
	e.State, e.Quorum = cluster.StateDegraded, cluster.QuorumSum{Voters: 3, Healthy: 2, Quorum: 2}
	e.Alarms = []cluster.EtcdAlarm{{Member: "a1", Kind: "CORRUPT"}, {Member: "a1", Kind: "NOSPACE"}}
	e.Members[1].Lag = 12
	fail(&e.Members[2])
	e.Findings = []cluster.Finding{{Code: "etcd-nospace", Severity: cluster.SeverityCritical, What: "full", Do: "make room"}}
	if err := a.printEtcd("three", e, "table"); err != nil {
		t.Fatal(err)
	}
	want := `etcd of cluster three: degraded
3 voters, 2 healthy, quorum 2, may lose 0

MEMBER   ID   STATE      VERSION   TERM   INDEX   LAG   SIZE     IN USE   ALARMS            WHY
cp1      a1   follower   3.6.16    4      1000    0     64 MiB   32 MiB   CORRUPT,NOSPACE   -
cp2      a2   leader     3.6.16    4      1000    12    64 MiB   32 MiB   -                 -
cp3      a3   down       -         -      -       -     -        -        -                 does not answer: it is off

critical: full (etcd-nospace)
  do:  make room
`
	if diff := cmp.Diff(want, out()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPrintMembersAndAlarms(t *testing.T) {
	a, out, talk := testApp(t, nil)
	e := threeMembers()
	learn(&e.Members[2])
	if err := errors.Join(a.printMembers(e.Members, "table"), a.printMembers(e.Members, "json")); err != nil {
		t.Fatal(err)
	}
	table, data, _ := strings.Cut(out(), "{")
	want := `MEMBER   ID   VOTES   HEALTHY   PEER URL                   WHY
cp1      a1   yes     yes       https://198.18.0.11:2380   -
cp2      a2   yes     yes       https://198.18.0.12:2380   -
cp3      a3   no      yes       https://198.18.0.13:2380   -
`
	if diff := cmp.Diff(want, table); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !strings.Contains(data, `"id": "a1"`) || !strings.Contains(data, "EtcdMemberList") || strings.Contains(data, `"status"`) {
		t.Errorf("data is %s", data)
	}
	if e.Members[0].Status == nil {
		t.Error("printing changed the members")
	}
	if err := a.printAlarms(e, "table"); err != nil || talk() != "etcd has no alarms\n" {
		t.Errorf("got %v, %q", err, talk())
	}
	e.Alarms = []cluster.EtcdAlarm{{Member: "a2", Kind: "NOSPACE"}, {Member: "0", Kind: "CORRUPT"}}
	before := out()
	if err := a.printAlarms(e, "table"); err != nil {
		t.Fatal(err)
	}
	want = "MEMBER   ID   ALARM\ncp2      a2   NOSPACE\n-        0    CORRUPT\n"
	if diff := cmp.Diff(want, strings.TrimPrefix(out(), before)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDialEtcdNeedsItsFiles(t *testing.T) {
	_, err := dialEtcd(etcd.Config{Endpoints: []string{"https://127.0.0.1:1"}}, filepath.Join(t.TempDir(), "ca.crt"))
	if problem, ok := errors.AsType[*cluster.Problem](err); !ok || problem.Do != "run it on a server" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("on a worker: %v", err)
	}
}

// TestTimersGoLeaderLast: followers start again first, and all of them.
func TestTimersGoLeaderLast(t *testing.T) {
	var names []string
	for _, m := range leaderLast(threeMembers().Members) {
		names = append(names, m.Label)
	}
	if diff := cmp.Diff([]string{"cp1", "cp3", "cp2"}, names); diff != "" {
		t.Errorf("order differs (-want +got):\n%s", diff)
	}
}
