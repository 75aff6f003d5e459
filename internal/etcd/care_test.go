package etcd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"kuorum/internal/cluster"
)

func TestFullDatabaseIsMended(t *testing.T) {
	t.Parallel()
	s := startCluster(t, 1, "--unsafe-no-fsync", "--quota-backend-bytes=20971520")[0]
	c := dialTo(t, nil, s)
	ctx := within(t, 2*patience)
	fill := func() error {
		_, err := c.members[0].client.Put(ctx, "k", strings.Repeat("x", 1<<20))
		return err
	}
	for range 40 { // twice the quota
		if err := fill(); err != nil {
			if !is(err, rpctypes.ErrGRPCNoSpace) {
				t.Fatal(err)
			}
			break
		}
	}
	full := c.Status(ctx)
	wantAlarms := []cluster.EtcdAlarm{{Member: full.ID, Kind: "NOSPACE"}}
	if diff := cmp.Diff(wantAlarms, full.Alarms); diff != "" {
		t.Fatalf("alarms in the status differ (-want +got):\n%s", diff)
	}
	alarms, err := c.Alarms(ctx)
	mustDo(t, err)
	if diff := cmp.Diff(wantAlarms, alarms); diff != "" {
		t.Errorf("alarms differ (-want +got):\n%s", diff)
	}

	revision, err := c.Revision(ctx)
	mustDo(t, err)
	if err := c.Compact(ctx, revision+1000); err == nil || !strings.Contains(err.Error(), "no such revision yet") {
		t.Errorf("compacted the future: %v", err)
	}
	mustDo(t, c.Compact(ctx, revision))
	mustDo(t, c.Compact(ctx, revision)) // once more does no harm
	order, err := DefragOrder(map[string]cluster.EtcdStatus{"m1": c.Status(ctx)})
	if err != nil || !slices.Equal(order, []string{"m1"}) {
		t.Errorf("order of a full member: %v, %v", order, err)
	}
	mustDo(t, c.Defragment(ctx))
	shrunk := c.Status(ctx)
	if shrunk.DBBytes > full.DBBytes/2 {
		t.Errorf("the file had %d bytes and has %d", full.DBBytes, shrunk.DBBytes)
	}
	if order, err := DefragOrder(map[string]cluster.EtcdStatus{"m1": shrunk}); err != nil || len(order) > 0 {
		t.Errorf("to be done again: %v, %v", order, err)
	}

	if err := fill(); !is(err, rpctypes.ErrGRPCNoSpace) {
		t.Errorf("an alarm went away by itself: %v", err)
	}
	mustDo(t, c.Disarm(ctx, alarms[0]))
	mustDo(t, c.Disarm(ctx, alarms[0]))
	if got := c.Status(ctx).Alarms; got != nil {
		t.Errorf("alarms after disarming: %v", got)
	}
	mustDo(t, fill())
	mustDo(t, c.Disarm(ctx, cluster.EtcdAlarm{Member: "0", Kind: "CORRUPT"})) // etcd's own way to name nobody
	for _, wrong := range []cluster.EtcdAlarm{{Member: full.ID, Kind: "NONE"}, {Member: full.ID}, {Kind: "NOSPACE"}, {Member: "0", Kind: "NOSPACE"}} {
		if err := c.Disarm(ctx, wrong); exitCode(err) != cluster.ExitUsage {
			t.Errorf("disarmed %+v: %v", wrong, err)
		}
	}
}

func TestInterruptedQuestions(t *testing.T) {
	t.Parallel()
	c := dialTo(t, nil, newServer(t, "m1"))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	begun := time.Now()
	if _, err := c.Members(ctx); !errors.Is(err, why) {
		t.Errorf("members: %v", err)
	}
	if err := c.Defragment(ctx); !errors.Is(err, why) {
		t.Errorf("defragment: %v", err)
	}
	if got := c.Status(ctx).Error; got != "was not asked to the end" {
		t.Errorf("status: %s", got)
	}
	if took := time.Since(begun); took > askWait {
		t.Errorf("it took %v", took)
	}
}

func TestDialNeedsAnEndpoint(t *testing.T) {
	if _, err := Dial(Config{}); err == nil {
		t.Error("dialled nobody")
	}
}
