package advise

import (
	"fmt"
	"time"
)

const (
	// leastHeartbeat was measured: 20 ms with elections of 200 ms were stable
	// and found a dead leader four times faster than etcd's default (100 ms and
	// 1 s) with fsyncs of 8 to 17 ms (p99) and no network between the members;
	// 10 ms with 100 ms were not.
	leastHeartbeat = 20 * time.Millisecond
	// mostHeartbeat makes an election of 50 s, the longest that etcd takes.
	mostHeartbeat = 5 * time.Second
	// heartbeatStep keeps the advice from changing with every measurement.
	heartbeatStep = 5 * time.Millisecond
	// electionBeats is between etcd's own bound of five heartbeats, and what
	// its documentation asks for, at least ten times the RTT.
	electionBeats = 10
)

// TimerAdvice is what etcd's timers could be, and why.
type TimerAdvice struct {
	Heartbeat, Election time.Duration
	Reasons             []string
}

// Timers advises how to set etcd's timers for members that are rtt apart, the
// longest between any two, and for the slowest disk, whose fsyncs take
// fsyncP99. Either may be 0, for not measured. A heartbeat is about the RTT, as
// etcd's documentation has it, and no shorter than an fsync: a member that
// waits for its disk hears nobody and sends nothing. An election is ten
// heartbeats, so ten times either.
func Timers(rtt, fsyncP99 time.Duration) TimerAdvice {
	a := TimerAdvice{Heartbeat: leastHeartbeat}
	reason := fmt.Sprintf("shorter than %v was not stable, whatever the network and the disk", leastHeartbeat)
	if need := roundUp(rtt); need > a.Heartbeat {
		a.Heartbeat, reason = need, fmt.Sprintf("a heartbeat is about the time between the members (%s)", short(rtt))
	}
	if need := roundUp(fsyncP99); need > a.Heartbeat {
		a.Heartbeat, reason = need, fmt.Sprintf("a member that waits for its disk (fsync p99 %s) sends no heartbeat: a faster disk would allow shorter ones", short(fsyncP99))
	}
	a.Reasons = []string{reason}
	if a.Heartbeat > mostHeartbeat {
		a.Heartbeat = mostHeartbeat
		a.Reasons = append(a.Reasons, fmt.Sprintf("etcd takes no election beyond %v: these machines are too slow or too far apart for one cluster", electionBeats*mostHeartbeat))
	}
	a.Election = ElectionOf(a.Heartbeat)
	a.Reasons = append(a.Reasons, fmt.Sprintf("an election is %d heartbeats: ten times the RTT at least, and a few late packets call none", electionBeats))
	if rtt == 0 {
		a.Reasons = append(a.Reasons, "the time between the members is not known")
	}
	if fsyncP99 == 0 {
		a.Reasons = append(a.Reasons, "the time of an fsync is not known")
	}
	return a
}

// ElectionOf is the election timeout that goes with a heartbeat.
func ElectionOf(heartbeat time.Duration) time.Duration { return electionBeats * heartbeat }

// Slowest is the longest way between two members, and the slowest fsyncs of
// any, as they measured them lately; 0 for what nobody knows.
func Slowest(e Etcd) (rtt, fsyncP99 time.Duration) {
	for _, m := range e.Members {
		if m.Status != nil {
			rtt, fsyncP99 = max(rtt, time.Duration(m.Status.PeerRTT)), max(fsyncP99, time.Duration(m.Status.FsyncP99))
		}
	}
	return rtt, fsyncP99
}

// roundUp is d in whole steps; it cannot overflow below mostHeartbeat.
func roundUp(d time.Duration) time.Duration {
	d = min(d, mostHeartbeat+heartbeatStep)
	return (d + heartbeatStep - 1) / heartbeatStep * heartbeatStep
}

// short is a duration with as many digits as a person reads.
func short(d time.Duration) string {
	if d < time.Millisecond {
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(100 * time.Microsecond).String()
}
