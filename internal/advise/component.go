package advise

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Phases of a component that matter here, see cluster.ComponentStatus.
const (
	phaseStarting = "starting"
	phaseReady    = "ready"
	phaseBackoff  = "backoff"
)

// Components that others need.
const (
	etcd       = "etcd"
	apiserver  = "kube-apiserver"
	endpoint   = "endpoint"
	haproxy    = "haproxy"
	containerd = "containerd"
	kubelet    = "kubelet"
	// writes to etcd are no component, but leaders need them as if they were:
	// one that cannot renew its lease ends.
	writes = "writes"
)

// needs lists what a component cannot work without, on its own node but for
// etcd, which may be elsewhere. While one of those is down, it is the cause.
func needs(name string) []string {
	switch name {
	case apiserver:
		return []string{etcd}
	case "kube-controller-manager", "kube-scheduler":
		return []string{apiserver, endpoint, writes}
	case kubelet:
		return []string{containerd, endpoint}
	case "flannel", "kube-proxy", "coredns":
		return []string{endpoint, kubelet}
	}
	return nil
}

// components has a finding for each component that is not ready, and has
// nothing but itself to blame.
func (v *view) components() []cluster.Finding {
	var all []cluster.Finding
	for _, r := range v.answering() {
		for _, c := range r.Status.Components {
			if c.Phase == phaseReady || astray(r) || v.blocked(r, c) {
				continue
			}
			all = append(all, componentFinding(r, c))
		}
	}
	return all
}

func componentFinding(r cluster.NodeReport, c cluster.ComponentStatus) cluster.Finding {
	f := cluster.Finding{
		Code:     codeComponentDown,
		Severity: cluster.SeverityWarning,
		Node:     r.Name,
		What:     fmt.Sprintf("%s of %s is not ready: %s", c.Name, r.Name, c.Phase),
		Why:      strings.Join(exits(c), "; "),
		Do:       fmt.Sprintf("kuorum logs %s %s", r.Name, c.Name),
	}
	if since := r.Status.Time.Sub(c.Since); !c.Since.IsZero() && since >= time.Second {
		f.What += " for " + since.Truncate(time.Second).String()
	}
	if slices.Contains([]string{etcd, apiserver, kubelet, containerd}, c.Name) {
		f.Severity = cluster.SeverityCritical
	}
	if c.Phase == phaseBackoff {
		f.Code = codeComponentCrashLoop
		f.What = fmt.Sprintf("%s of %s keeps ending: %s", c.Name, r.Name, plural(c.Restarts, "restart"))
	}
	return f
}

// stale is what runs as an earlier cluster.yaml had it, on all nodes at once: a
// single cure is asked for.
func (v *view) stale() []cluster.Finding {
	var nodes, what []string
	for _, r := range v.answering() {
		if len(r.Status.Stale) > 0 {
			nodes = append(nodes, r.Name)
			what = append(what, strings.Join(r.Status.Stale, " and ")+" of "+r.Name)
		}
	}
	if len(nodes) == 0 {
		return nil
	}
	return []cluster.Finding{{
		Code:     codeRestartDue,
		Severity: cluster.SeverityInfo,
		What:     "cluster.yaml has changed, and does not count everywhere yet: " + strings.Join(nodes, ", "),
		Why:      strings.Join(what, ", ") + ": they start again in turn, each when the others can do without it",
		Do:       "nothing; if it stays: kuorum logs " + nodes[0] + " agent",
	}}
}

// exits is why a component is not ready, and how it ended last.
func exits(c cluster.ComponentStatus) []string {
	var parts []string
	if c.Message != "" {
		parts = append(parts, c.Message)
	}
	if c.LastExit != "" && !strings.Contains(c.Message, c.LastExit) {
		parts = append(parts, "ended last with "+c.LastExit)
	}
	return parts
}

// blocked tells whether another finding is the reason for a component that is
// not ready.
func (v *view) blocked(r cluster.NodeReport, c cluster.ComponentStatus) bool {
	if c.Name == etcd {
		return v.etcdBlocked(r, c)
	}
	if c.Name == endpoint || c.Name == haproxy {
		return !v.sum.Holds() || v.noAPI()
	}
	if c.Name == apiserver && (!v.sum.Holds() || foreignWhy(r) != "") {
		return true
	}
	return slices.ContainsFunc(needs(c.Name), func(need string) bool { return v.down(r, need) })
}

// etcdBlocked tells whether the findings of members say all about a node's
// etcd, which is not ready. They do not if its process ends by itself.
func (v *view) etcdBlocked(r cluster.NodeReport, c cluster.ComponentStatus) bool {
	for _, id := range v.alarmed(alarmCorrupt) {
		if v.nodeOfID(id) == r.Name {
			return true // it compares itself with the others and ends
		}
	}
	switch v.nodeFault(r) {
	case faultNone, faultLagging:
		return c.Phase != phaseBackoff && (len(v.alarmed(alarmCorrupt)) > 0 || !v.sum.Holds())
	case faultSilent:
		return c.Phase != phaseBackoff
	default:
		return true
	}
}

// down tells whether something that components need is not there on a node.
func (v *view) down(r cluster.NodeReport, need string) bool {
	switch need {
	case writes:
		return !v.writable()
	case etcd:
		if !v.hasMember(r) { // it is on other machines
			return !v.sum.Holds() || len(v.alarmed(alarmCorrupt)) > 0
		}
		if v.nodeFault(r) != faultNone || len(v.alarmed(alarmCorrupt)) > 0 {
			return true
		}
	case apiserver, endpoint:
		if !v.sum.Holds() {
			return true
		}
	}
	phase := phaseOf(*r.Status, need)
	return phase != "" && phase != phaseReady
}

// writable tells whether etcd takes writes.
func (v *view) writable() bool {
	return v.sum.Holds() && len(v.alarmed(alarmNoSpace)) == 0 && len(v.alarmed(alarmCorrupt)) == 0
}

// noAPI tells whether there is an API server that does not work, or cannot be
// seen, and none that works.
func (v *view) noAPI() bool {
	missing := false
	for _, n := range v.spec.Servers() {
		r := v.report(n.Name)
		if !answered(r) {
			missing = true
			continue
		}
		switch phaseOf(*r.Status, apiserver) {
		case phaseReady:
			return false
		case "":
		default:
			missing = true
		}
	}
	return missing
}

// phaseOf is the phase of a node's component; empty when it has none such.
func phaseOf(s cluster.NodeStatus, name string) string { return componentOf(s, name).Phase }

func componentOf(s cluster.NodeStatus, name string) cluster.ComponentStatus {
	for _, c := range s.Components {
		if c.Name == name {
			return c
		}
	}
	return cluster.ComponentStatus{}
}
