package advise

import (
	"fmt"
	"strings"

	"kuorum/internal/cluster"
)

// quorum is the finding that there is none: who is missing, and why.
func (v *view) quorum() []cluster.Finding {
	if v.sum.Holds() {
		return nil
	}
	if v.spec.EtcdExternal() && !v.anybodyLooks() {
		return []cluster.Finding{v.nobodyLooks()}
	}
	var names, causes []string
	unreachable := 0
	for _, m := range v.missing() {
		names = append(names, m.name)
		causes = append(causes, m.name+" "+v.absence(m))
		if v.faultOf(m) == faultUnreachable {
			unreachable++
		}
	}
	why := strings.Join(causes, "; ")
	if leader := v.leader(); leader != "" && unreachable == len(names) {
		why += fmt.Sprintf("; etcd still has %s as its leader: if that lasts, only agents are out of reach", leader)
	}
	return []cluster.Finding{{
		Code:     codeNoQuorum,
		Severity: cluster.SeverityCritical,
		What: fmt.Sprintf("etcd has no quorum, nothing can be written: %d of %s, %d needed; missing: %s",
			v.sum.Healthy, plural(v.sum.Voters, "voter"), v.sum.Quorum, strings.Join(names, ", ")),
		Why: why,
		Do:  v.regain(),
	}}
}

// missing lists the voters that do not take part.
func (v *view) missing() []member {
	var list []member
	for _, m := range v.members {
		if !m.Learner && !v.takesPart(m) {
			list = append(list, m)
		}
	}
	return list
}

// absence says why a voter does not take part, after its name.
func (v *view) absence(m member) string {
	if v.spec.EtcdExternal() && m.status == nil {
		return v.silenceOf(m)
	}
	r := v.report(m.node)
	if astray(r) {
		return "is not at " + r.Status.Lost + " any more"
	}
	switch v.faultOf(m) {
	case faultStranger:
		return "is on no node of cluster.yaml, so nobody can ask it"
	case faultUnreachable:
		return "does not answer: " + silence(r)
	case faultNeverStarted:
		return "has never started"
	case faultSilent:
		if oldData(r) != nil {
			return "does not start etcd: its data is older than what it had"
		}
		return "runs no etcd that answers: " + etcdError(r)
	case faultReplaced, faultNotMember:
		if v.best == nil {
			return "is a learner, or knows of no members"
		}
		return "runs etcd as another member, " + r.Status.Etcd.ID
	case faultLagging:
		return "does not know yet that it votes"
	default:
		return v.position(m.status)
	}
}

// position is whom a member follows, and whom the others do.
func (v *view) position(s *cluster.EtcdStatus) string {
	if s.Leader == "" {
		return "knows no leader"
	}
	return fmt.Sprintf("follows %s in term %d, others %s in term %d",
		v.nameOf(s.Leader), s.Term, v.nameOf(v.best.Leader), v.best.Term)
}

// regain is how the quorum comes back: machines at other addresses and machines
// that are off first, then what the logs say.
func (v *view) regain() string {
	var off, logs, old, moved []string
	for _, m := range v.missing() {
		if r := v.report(m.node); astray(r) && len(r.Status.Addresses) > 0 {
			moved = append(moved, m.node+"="+r.Status.Addresses[0])
			continue
		}
		if oldData(v.report(m.node)) != nil { // its log says nothing: it does not start
			old = append(old, m.node)
			continue
		}
		switch v.faultOf(m) {
		case faultUnreachable:
			off = append(off, m.node)
		case faultSilent, faultNeverStarted, faultReplaced, faultNotMember:
			logs = append(logs, m.node)
		default: // nothing to read or to switch on
		}
	}
	switch {
	case len(moved) > 0: // all at once, or they would not find each other
		return "kuorum node address " + strings.Join(moved, " ")
	case len(off) == 1:
		return "kuorum lab start " + off[0]
	case len(off) > 1: // none is ready before the others run: do not wait
		return "kuorum lab start --wait=false " + strings.Join(off, "; kuorum lab start --wait=false ")
	case len(logs) > 0:
		return "kuorum logs " + logs[0] + " etcd"
	case len(old) > 0:
		return "Put the newest data of " + strings.Join(old, " and ") + " back, or take what is there: docs/findings.md has the steps, at etcd-data-old."
	}
	return "kuorum etcd status"
}

// reserve is what to know of a number of voters that holds, and is worse than
// it could be.
func (v *view) reserve() []cluster.Finding {
	n, noun := v.sum.Voters, "server"
	switch {
	case v.spec.EtcdExternal():
		noun = "etcd member"
	case v.spec.EtcdApart():
		noun = "etcd node"
	}
	switch {
	case !v.sum.Holds():
		return nil
	case n == 1 && (v.spec.EtcdExternal() || len(v.spec.EtcdNodes()) == 1):
		return []cluster.Finding{{
			Code:     codeEtcdSingle,
			Severity: cluster.SeverityInfo,
			What:     "one " + noun + " survives no failure",
			Why:      "1 voter, quorum 1, may lose 0; 3 voters may lose 1",
			Do:       "Keep backups, or make a cluster of 3 " + noun + "s.",
		}}
	case n%2 == 0:
		return []cluster.Finding{{
			Code:     codeEtcdEven,
			Severity: cluster.SeverityInfo,
			What:     fmt.Sprintf("%d voters survive no more failures than %d", n, n-1),
			Why: fmt.Sprintf("%d voters: quorum %d, may lose %d; %s: quorum %d, may lose %d", n,
				cluster.Quorum(n), cluster.MayLose(n), plural(n-1, "voter"), cluster.Quorum(n-1), cluster.MayLose(n-1)),
			Do: fmt.Sprintf("Have an odd number of %ss: %d or %d.", noun, n-1, n+1),
		}}
	}
	return nil
}

// plural is a number and its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
