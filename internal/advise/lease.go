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

// virtualIP is that it is at one place. A node that cannot tell, since its
// balancer does not run, is found as such.
func (v *view) virtualIP() []cluster.Finding {
	var holders, why []string
	elsewhere := false // at a node whose agent does not answer, and that is found
	for _, r := range v.answering() {
		s := r.Status.VIP
		switch {
		case s == nil || s.Error != "" && phaseOf(*r.Status, v.spec.VIPKeeper()) != phaseReady:
			continue
		case s.Error != "":
			why = append(why, r.Name+": "+s.Error)
			continue
		case s.State == cluster.VIPActive:
			holders = append(holders, r.Name)
		case s.Holder != "" && !v.answersAt(s.Holder):
			elsewhere = true
		}
		why = append(why, r.Name+" is "+s.State)
	}
	if v.spec.Spec.Endpoint.Type == cluster.EndpointHAProxy { // only the holder itself knows, and none holds it without a server
		elsewhere = !v.sum.Holds() || v.noAPI()
		for _, n := range v.spec.Balancers() {
			elsewhere = elsewhere || !answered(v.report(n.Name))
		}
	}
	address := v.spec.Spec.Endpoint.Address
	switch {
	case len(holders) > 1:
		both := strings.Join(holders, " and ")
		return []cluster.Finding{{
			Code: codeVIPTwice, Severity: cluster.SeverityCritical,
			What: fmt.Sprintf("the virtual IP %s is at %s at the same time", address, both),
			Why:  "they do not hear each other's advertisements (VRRP, IP protocol 112)",
			Do:   "Find what is between " + both + ": a firewall, a cut network.",
		}}
	case len(holders) == 1 || elsewhere || why == nil:
		return nil
	}
	return []cluster.Finding{{
		Code: codeVIPNobody, Severity: cluster.SeverityCritical,
		What: "nobody holds the virtual IP " + address, Why: strings.Join(why, "; "),
		Do: "kuorum logs " + v.spec.VIPHolders()[0].Name + " " + v.spec.VIPKeeper(),
	}}
}

// answersAt tells whether the agent of the node at that address answers.
func (v *view) answersAt(address string) bool {
	return slices.ContainsFunc(v.answering(), func(r cluster.NodeReport) bool { return r.Address == address })
}
