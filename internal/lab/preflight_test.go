package lab

import (
	"strings"
	"testing"

	"kuorum/internal/cluster"
	"kuorum/internal/doctor"
	"kuorum/internal/host"
)

// TestLimitIsRaisedLast: too few inotify instances refuse nothing, since they can be
// had; and whatever else is missing leaves the host's limit as it is.
func TestLimitIsRaisedLast(t *testing.T) {
	_, before, err := host.Inotify()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.New("demo", 3, 0)
	if err != nil {
		t.Fatal(err)
	}
	need := doctor.LabNeed(spec)
	var facts doctor.Facts
	facts.Memory.Available, facts.Disk.Free = need.Free.Memory, need.Free.Disk
	facts.Inotify = doctor.Inotify{Used: 128, Limit: 128}
	if err := checkSpace(facts, need); err != nil {
		t.Errorf("refused: %v", err)
	}
	facts.Memory.Available--
	if err := checkSpace(facts, need); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("without enough memory: %v", err)
	}
	if _, now, err := host.Inotify(); err != nil || now != before {
		t.Errorf("the limit was %d and is %d, %v", before, now, err)
	}
}
