package advise

import (
	"cmp"
	"fmt"
	"slices"
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
