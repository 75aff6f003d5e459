package advise

import (
	"fmt"
	"slices"
	"strings"

	"kuorum/internal/cluster"
)

// looks is what a node's server sees of an etcd that somebody else runs; nil: it
// does not look, or does not answer.
func looks(r cluster.NodeReport) *cluster.ExternalEtcdStatus {
	if !answered(r) {
		return nil
	}
	return r.Status.External
}

// statusesOf is what a node tells of members that answer: of its own, or of those
// that somebody else runs.
func statusesOf(r cluster.NodeReport) []*cluster.EtcdStatus {
	var list []*cluster.EtcdStatus
	if s := etcdOf(r); s != nil {
		list = append(list, s)
	}
	if seen := looks(r); seen != nil {
		for i := range seen.Endpoints {
			if s := &seen.Endpoints[i].EtcdStatus; s.Error == "" {
				list = append(list, s)
			}
		}
	}
	return list
}

func (v *view) anybodyLooks() bool {
	return slices.ContainsFunc(v.nodes, func(r cluster.NodeReport) bool { return looks(r) != nil })
}

// nobodyLooks is the finding where no server answers: what is with etcd then, only
// those know who run it.
func (v *view) nobodyLooks() cluster.Finding {
	var why, do []string
	for _, n := range v.spec.Servers() {
		r := v.report(n.Name)
		if answered(r) {
			why = append(why, n.Name+" does not tell")
			do = append(do, "kuorum logs "+n.Name+" agent")
			continue
		}
		why = append(why, n.Name+" does not answer: "+silence(r))
		do = append(do, "kuorum lab start --wait=false "+n.Name)
	}
	return cluster.Finding{
		Code: codeNoQuorum, Severity: cluster.SeverityCritical,
		What: "whether etcd has a quorum nobody can tell: no server answers that would ask it",
		Why:  strings.Join(why, "; "),
		Do:   strings.Join(do, "; "),
	}
}

// endpointsAsMembers stand for members while none tells the list.
func (v *view) endpointsAsMembers() []member {
	var list []member
	for _, endpoint := range v.spec.Spec.Etcd.External.Endpoints {
		name := strings.TrimPrefix(endpoint, "https://")
		list = append(list, member{EtcdMember: cluster.EtcdMember{Name: name, ClientURLs: []string{endpoint}}, name: name})
	}
	return list
}

// presume finds the members that somebody else runs, do not answer, and take part
// nevertheless. A leader that others follow does. And when a quorum has just agreed,
// as many must have as it takes: of the members that no endpoint leads to, and then
// of those that only we do not reach.
func (v *view) presume() {
	v.presumed = map[string]bool{}
	if !v.spec.EtcdExternal() || v.best == nil {
		return
	}
	agrees := slices.ContainsFunc(v.nodes, func(r cluster.NodeReport) bool { return looks(r) != nil && looks(r).Agrees })
	for _, kind := range []fault{faultUnnamed, faultSilent} {
		for _, m := range v.members {
			if m.Learner || m.status != nil || v.faultOf(m) != kind {
				continue
			}
			leads := kind == faultUnnamed && m.ID == v.best.Leader
			if leads || agrees && !cluster.SumOf(v.voters()).Holds() {
				v.presumed[m.ID] = true
			}
		}
	}
}

// reach is who reaches an endpoint, and why others do not.
type reach struct {
	url     string
	reached []string // names of servers
	failed  []string
	why     map[string]string // by the name of a server
}

func (v *view) reaches() []reach {
	var list []reach
	for i, url := range v.spec.Spec.Etcd.External.Endpoints {
		e := reach{url: url, why: map[string]string{}}
		for _, r := range v.nodes {
			seen := looks(r)
			if seen == nil || i >= len(seen.Endpoints) || seen.Endpoints[i].URL != url {
				continue
			}
			if text := seen.Endpoints[i].Error; text != "" {
				e.failed, e.why[r.Name] = append(e.failed, r.Name), text
			} else {
				e.reached = append(e.reached, r.Name)
			}
		}
		list = append(list, e)
	}
	return list
}

// dead tells that servers have asked, and none was answered.
func (e reach) dead() bool { return len(e.failed) > 0 && len(e.reached) == 0 }

func (e reach) reason() string { return e.url + ": " + e.why[e.failed[0]] }

// deadOf are the dead endpoints that a member which does not answer says are its
// own, or else those that nobody says so of: one of them may be the member's, under
// another name.
func (v *view) deadOf(m member) []reach {
	var own, nobodys []reach
	for _, e := range v.reaches() {
		if !e.dead() {
			continue
		}
		if slices.Contains(m.ClientURLs, e.url) {
			own = append(own, e)
		}
		if !v.says(e.url) {
			nobodys = append(nobodys, e)
		}
	}
	if len(own) > 0 {
		return own
	}
	return nobodys
}

// says tells whether some member says that it answers there.
func (v *view) says(url string) bool {
	return slices.ContainsFunc(v.members, func(m member) bool { return slices.Contains(m.ClientURLs, url) })
}

func (v *view) externalFault(m member) fault {
	switch {
	case m.status != nil:
		return v.standing(m)
	case m.Name == "":
		return faultNeverStarted
	case v.anybodyLooks() && len(v.deadOf(m)) == 0:
		return faultUnnamed
	}
	return faultSilent
}

// silenceOf says why a member does not answer, after its name.
func (v *view) silenceOf(m member) string {
	switch v.externalFault(m) {
	case faultNeverStarted:
		return "has never started"
	case faultUnnamed:
		return "is at no endpoint of cluster.yaml, so nobody can ask it"
	}
	var reasons []string
	for _, e := range v.deadOf(m) {
		reasons = append(reasons, e.reason())
	}
	if len(reasons) == 0 {
		return "was asked by nobody: no server answers"
	}
	return "does not answer at " + strings.Join(reasons, ", ")
}

// externalSilent is a member that does not answer. Without a quorum it is named
// there.
func (v *view) externalSilent(m member) []cluster.Finding {
	f := cluster.Finding{Why: m.name + " " + v.silenceOf(m)}
	switch fault := v.externalFault(m); {
	case fault == faultNeverStarted:
		f.Code, f.Severity = codeEtcdNeverStarted, cluster.SeverityWarning
		f.What = "etcd's member " + m.ID + " was added and has never started"
		f.Why = "its peers expect it at " + strings.Join(m.PeerURLs, ", ")
	case fault == faultUnnamed:
		f.Code, f.Severity = codeEtcdUnnamed, cluster.SeverityWarning
		f.What = fmt.Sprintf("no endpoint of cluster.yaml leads to etcd's member %s", m.name)
		f.Why = "nobody can ask how it is; it answers clients at " + strings.Join(m.ClientURLs, ", ")
	case !v.sum.Holds():
		return nil
	default:
		f.Code, f.Severity = codeEtcdDown, cluster.SeverityCritical
		f.What = fmt.Sprintf("etcd's member %s does not answer", m.name)
	}
	return []cluster.Finding{f}
}

// endpoints are those that some servers reach and others do not, which is the
// matter of those servers; and those that nobody reaches though all members answer.
func (v *view) endpoints() []cluster.Finding {
	var all []cluster.Finding
	for _, e := range v.reaches() {
		if e.dead() && !v.missed(e) {
			all = append(all, cluster.Finding{
				Code: codeEtcdEndpoint, Severity: cluster.SeverityWarning,
				What: "no server reaches the endpoint " + e.url + " of etcd", Why: e.reason() + "; all members answer at others",
				Do: "Ask those who run etcd whether a member of it is still to be there.",
			})
		}
		for _, name := range e.failed {
			if len(e.reached) == 0 {
				break
			}
			all = append(all, cluster.Finding{
				Code: codeEtcdEndpoint, Severity: cluster.SeverityWarning, Node: name,
				What: fmt.Sprintf("%s does not reach the endpoint %s of etcd", name, e.url),
				Why:  fmt.Sprintf("%s; it is reached by %s", e.why[name], strings.Join(e.reached, ", ")),
				Do:   fmt.Sprintf("Open the way from %s to %s (firewall, routes).", name, strings.TrimPrefix(e.url, "https://")),
			})
		}
	}
	return all
}

// missed tells whether an endpoint that nobody reaches is why a member does not
// answer, which is found with the member.
func (v *view) missed(e reach) bool {
	return slices.ContainsFunc(v.members, func(m member) bool {
		return m.status == nil && slices.ContainsFunc(v.deadOf(m), func(own reach) bool { return own.url == e.url })
	})
}

// foreignWhy is why a server must not use the etcd that was given; empty: nothing is
// known against it.
func foreignWhy(r cluster.NodeReport) string {
	if seen := looks(r); seen != nil {
		return seen.Foreign
	}
	return ""
}

// foreign is one finding, since all servers look at the same data.
func (v *view) foreign() []cluster.Finding {
	var names []string
	why := ""
	for _, r := range v.nodes {
		if text := foreignWhy(r); text != "" {
			names, why = append(names, r.Name), text
		}
	}
	if len(names) == 0 {
		return nil
	}
	return []cluster.Finding{{
		Code: codeEtcdForeign, Severity: cluster.SeverityCritical,
		What: "the etcd that was given to this cluster has another's data: nothing is read or written there",
		Why:  why + "; so say " + strings.Join(names, ", "),
		Do:   "Give each cluster an etcd of its own, with nothing below /registry/ and /kuorum/.",
	}}
}

// theirs is a finding about an etcd that somebody else runs, with what they are to
// be asked: the verbs that mend one of ours are refused there.
func (v *view) theirs(f cluster.Finding) cluster.Finding {
	if !v.spec.EtcdExternal() || f.Code == codeNoQuorum && !v.anybodyLooks() {
		return f
	}
	if ask := askThem(f.Code); ask != "" {
		f.Do = "Ask those who run etcd to " + ask + "."
	}
	return f
}

func askThem(code string) string {
	switch code {
	case codeNoQuorum:
		return "bring back the members that are missing: nothing that it acknowledged is lost"
	case codeEtcdDown:
		return "bring that member back"
	case codeEtcdNoLeader:
		return "see why that member does not follow the others"
	case codeEtcdNoSpace:
		return "make room (compact, defragment), then to disarm the alarm"
	case codeEtcdCorrupt:
		return "replace the damaged member: until then nothing is written"
	case codeEtcdQuotaNear:
		return "compact and defragment its databases, or to raise the quota"
	case codeEtcdFragmented:
		return "defragment its databases at a quiet hour"
	case codeEtcdBehind:
		return "see why that member is slow"
	case codeEtcdLearner:
		return "give the learner its vote, or to remove it"
	case codeEtcdNeverStarted:
		return "start that member, or to remove it"
	case codeEtcdUnnamed:
		return "tell you the endpoints of all members: cluster.yaml should name each when a cluster is made"
	case codeEtcdEven, codeEtcdSingle:
		return "have an odd number of members, three at least"
	}
	return ""
}
