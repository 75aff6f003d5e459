package advise

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// leases is each lease as the node tells it that saw it renewed last, by name.
func (v *view) leases() []cluster.LeaseStatus {
	var all []cluster.LeaseStatus
	for _, r := range v.answering() {
		for _, l := range r.Status.Leaders {
			i := slices.IndexFunc(all, func(have cluster.LeaseStatus) bool { return have.Name == l.Name })
			switch {
			case i < 0:
				all = append(all, l)
			case l.Renewed.After(all[i].Renewed):
				all[i] = l
			}
		}
	}
	slices.SortFunc(all, func(a, b cluster.LeaseStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// leaseHolders is the leases that nobody renews. Where no node has the program
// ready, or nothing can be written, that is the cause and is found as such.
func (v *view) leaseHolders() []cluster.Finding {
	if !v.writable() {
		return nil
	}
	var all []cluster.Finding
	for _, l := range v.leases() {
		// The holder wrote the time by its own clock.
		age := v.now.Add(time.Duration(v.report(l.Holder).ClockOffset)).Sub(l.Renewed)
		if age <= v.leasePatience(l) || v.readyNowhere(l.Name) {
			continue
		}
		why := fmt.Sprintf("it lasts %s, and %s renewed it %s ago", l.Lasts, cmp.Or(l.Holder, "its last holder"), age.Truncate(time.Second))
		if l.Holder == "" {
			why = fmt.Sprintf("its last holder gave it up %s ago, and no other took it", age.Truncate(time.Second))
		}
		all = append(all, cluster.Finding{
			Code:     codeNoLeaseHolder,
			Severity: cluster.SeverityWarning,
			What:     "no " + l.Name + " is at work: nobody holds its lease",
			Why:      why,
			Do:       v.leaseLog(l),
		})
	}
	return all
}

// leasePatience is how long a lease may go without being renewed. One that was given
// up is taken when another looks: after 2.2 retry periods at the latest, and while the
// API is busy a little later.
func (v *view) leasePatience(l cluster.LeaseStatus) time.Duration {
	lasts := time.Duration(l.Lasts)
	if l.Holder != "" {
		return lasts
	}
	return max(lasts, 3*time.Duration(v.spec.Elections()[l.Name].RetryPeriod))
}

// readyNowhere tells whether nodes have a component of that name, and none of
// them has it ready.
func (v *view) readyNowhere(name string) bool {
	found := false
	for _, r := range v.answering() {
		switch phaseOf(*r.Status, name) {
		case phaseReady:
			return false
		case "":
		default:
			found = true
		}
	}
	return found
}

// leaseLog is where to read why: at the last holder, or at another server if
// that one does not answer.
func (v *view) leaseLog(l cluster.LeaseStatus) string {
	node := l.Holder
	for _, n := range v.spec.Servers() {
		if r := v.report(node); answered(r) {
			break
		}
		node = n.Name
	}
	return fmt.Sprintf("kuorum logs %s %s", node, l.Name)
}

// VIPActive is the state of a server that holds the virtual IP.
const VIPActive = "active"

// virtualIP is that it is at one place. A server that cannot tell, since its
// balancer does not run, is found as such.
func (v *view) virtualIP() []cluster.Finding {
	address, known := v.spec.Spec.Endpoint.Address, false
	var holders, why []string
	for _, r := range v.answering() {
		s := r.Status.VIP
		if s == nil || s.Error != "" {
			continue
		}
		known = true
		if s.State == VIPActive {
			holders = append(holders, r.Name)
		}
		if s.Holder != "" && s.State != VIPActive && !v.answersAt(s.Holder) {
			return nil // at a server whose agent does not answer, and that is found
		}
		why = append(why, r.Name+" is "+s.State)
	}
	f := cluster.Finding{Severity: cluster.SeverityCritical, Why: strings.Join(why, "; ")}
	switch {
	case !known || len(holders) == 1:
		return nil
	case len(holders) == 0:
		f.Code, f.What = codeVIPNobody, "nobody holds the virtual IP "+address
		f.Do = "kuorum logs " + v.spec.Servers()[0].Name + " endpoint"
	default:
		f.Code, f.What = codeVIPTwice, fmt.Sprintf("the virtual IP %s is at %s at the same time", address, strings.Join(holders, " and "))
		f.Why = "they do not hear each other's advertisements (VRRP, IP protocol 112)"
		f.Do = "Find what is between " + strings.Join(holders, " and ") + ": a firewall, a cut network."
	}
	return []cluster.Finding{f}
}

// answersAt tells whether the agent of the node at that address answers.
func (v *view) answersAt(address string) bool {
	return slices.ContainsFunc(v.answering(), func(r cluster.NodeReport) bool { return r.Address == address })
}
