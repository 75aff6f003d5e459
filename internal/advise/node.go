package advise

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Limits of how far clocks may be apart: certificates, tokens and leases depend
// on them.
const (
	ClockWarning  = time.Second
	ClockCritical = 5 * time.Minute
)

// Limits of certificates.
const (
	certificateSoon = 30 * 24 * time.Hour // or a fifth of its life, if that is shorter
	filesNamed      = 3
)

// unreachable is the nodes whose agents do not answer. One with an etcd member is
// critical when there is no quorum: it may be the one that is missing.
func (v *view) unreachable() []cluster.Finding {
	var all []cluster.Finding
	for _, r := range v.nodes {
		if answered(r) {
			continue
		}
		severity := cluster.SeverityWarning
		if v.hasMember(r) && !v.sum.Holds() {
			severity = cluster.SeverityCritical
		}
		all = append(all, cluster.Finding{
			Code:     codeNodeUnreachable,
			Severity: severity,
			Node:     r.Name,
			What:     fmt.Sprintf("%s does not answer", r.Name),
			Why:      silence(r),
			Do:       "kuorum lab start " + r.Name,
		})
	}
	return all
}

// lost is the nodes whose address is not on their machine any more. Nothing of
// them works until a person has said where they are now.
func (v *view) lost() []cluster.Finding {
	var all []cluster.Finding
	for _, r := range v.answering() {
		if r.Status.Lost == "" {
			continue
		}
		f := cluster.Finding{
			Code:     codeAddressLost,
			Severity: cluster.SeverityCritical,
			Node:     r.Name,
			What:     fmt.Sprintf("the address of %s in cluster.yaml, %s, is not on its machine", r.Name, r.Status.Lost),
			Why:      "the machine has no address in its place",
			Do:       fmt.Sprintf("Give the machine of %s its address, or another one and then: kuorum node address %s=ADDRESS", r.Name, r.Name),
		}
		if len(r.Status.Addresses) > 0 {
			f.Why = "the machine has " + strings.Join(r.Status.Addresses, ", ")
			f.Do = fmt.Sprintf("kuorum node address %s=%s", r.Name, r.Status.Addresses[0])
		}
		all = append(all, f)
	}
	return all
}

// astray tells whether a node's machine has another address than the node:
// what does not work there follows from that.
func astray(r cluster.NodeReport) bool { return answered(r) && r.Status.Lost != "" }

// hasMember tells whether a node runs, or should run, a member of etcd.
func (v *view) hasMember(r cluster.NodeReport) bool {
	n, _ := v.spec.Node(r.Name)
	return v.spec.HasMember(cluster.Node{Role: cmp.Or(n.Role, r.Role)})
}

// silence is why a node's agent does not answer.
func silence(r cluster.NodeReport) string { return cmp.Or(r.Error, "its agent gave an empty answer") }

// clocks are the nodes whose clocks differ from the asker's. When all nodes
// agree with each other, the asker's is the wrong one.
func (v *view) clocks() []cluster.Finding {
	nodes := v.answering()
	if len(nodes) == 0 {
		return nil
	}
	byOffset := func(a, b cluster.NodeReport) int { return cmp.Compare(a.ClockOffset, b.ClockOffset) }
	low := time.Duration(slices.MinFunc(nodes, byOffset).ClockOffset)
	high := time.Duration(slices.MaxFunc(nodes, byOffset).ClockOffset)
	alike := len(nodes) > 1 && high-low <= ClockWarning && high-low >= 0
	if alike && (low > ClockWarning || high < -ClockWarning) {
		return []cluster.Finding{{
			Code:     codeClockOff,
			Severity: cluster.SeverityWarning,
			What:     "the clock of the computer that asks is off",
			Why:      fmt.Sprintf("by it, the clocks of all %d nodes that answer are %s", len(nodes), ahead(low)),
			Do:       "Set this computer's clock, by NTP.",
		}}
	}
	var all []cluster.Finding
	for _, r := range nodes {
		offset := time.Duration(r.ClockOffset)
		if -ClockWarning <= offset && offset <= ClockWarning {
			continue
		}
		severity := cluster.SeverityWarning
		if offset < -ClockCritical || ClockCritical < offset {
			severity = cluster.SeverityCritical
		}
		all = append(all, cluster.Finding{
			Code:     codeClockOff,
			Severity: severity,
			Node:     r.Name,
			What:     fmt.Sprintf("the clock of %s is off", r.Name),
			Why:      fmt.Sprintf("it is %s compared with the computer that asks", ahead(offset)),
			Do:       fmt.Sprintf("Set the clock of %s, by NTP.", r.Name),
		})
	}
	return all
}

// ahead is an offset in words.
func ahead(offset time.Duration) string {
	if offset < 0 {
		return (-offset).Round(100*time.Millisecond).String() + " behind"
	}
	return offset.Round(100*time.Millisecond).String() + " ahead"
}

// theirCertificates is where a node has what an etcd that somebody else runs was
// given to it with: only they can renew that.
const theirCertificates = "pki/etcd-external/"

// certificates is one finding for all certificates of a node: those that have
// expired, else those that soon will. What others gave is a finding of its own.
func (v *view) certificates(r cluster.NodeReport) []cluster.Finding {
	var own, theirs []cluster.CertificateStatus
	for _, c := range r.Status.Certificates {
		if strings.HasPrefix(c.File, theirCertificates) {
			theirs = append(theirs, c)
			continue
		}
		own = append(own, c)
	}
	return append(
		certificatesOf(r, own, "kuorum certs renew "+r.Name),
		certificatesOf(r, theirs, fmt.Sprintf("Ask those who run etcd for a new one, and put it on each server: /etc/kuorum/%s.", theirCertificates))...)
}

func certificatesOf(r cluster.NodeReport, list []cluster.CertificateStatus, do string) []cluster.Finding {
	var expired, soon []cluster.CertificateStatus
	for _, c := range list {
		left := c.Until.Sub(r.Status.Time) // the asker's clock may be wrong
		switch {
		case left <= 0:
			expired = append(expired, c)
		case left < min(certificateSoon, c.Until.Sub(c.From)/5):
			soon = append(soon, c)
		}
	}
	f := cluster.Finding{Node: r.Name, Do: do}
	switch {
	case len(expired) > 0:
		f.Code, f.Severity = codeCertificateExpired, cluster.SeverityCritical
		f.What = fmt.Sprintf("%s of %s expired, first on %s", plural(len(expired), "certificate"), r.Name, earliest(expired))
		f.Why = filesOf(expired)
	case len(soon) > 0:
		f.Code, f.Severity = codeCertificateExpiring, cluster.SeverityWarning
		f.What = fmt.Sprintf("%s of %s will expire, first on %s", plural(len(soon), "certificate"), r.Name, earliest(soon))
		f.Why = filesOf(soon)
		if slices.ContainsFunc(soon, isAuthority) { // and all that it has signed ends with it
			f.Do = "kuorum certs rotate-ca"
		}
	default:
		return nil
	}
	return []cluster.Finding{f}
}

func isAuthority(c cluster.CertificateStatus) bool { return c.Renew.IsZero() && c.Key != "" }

func earliest(list []cluster.CertificateStatus) string {
	first := slices.MinFunc(list, func(a, b cluster.CertificateStatus) int { return a.Until.Compare(b.Until) })
	return first.Until.UTC().Format(time.DateOnly)
}

// filesOf names the files that expire first, and counts the others.
func filesOf(list []cluster.CertificateStatus) string {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b cluster.CertificateStatus) int {
		return cmp.Or(a.Until.Compare(b.Until), cmp.Compare(a.File, b.File))
	})
	var names []string
	for _, c := range list[:min(filesNamed, len(list))] {
		names = append(names, c.File)
	}
	text := strings.Join(names, ", ")
	if more := len(list) - filesNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// versions is one finding when agents are of different versions.
func (v *view) versions() []cluster.Finding {
	var order []string
	nodes := map[string][]string{}
	for _, r := range v.answering() {
		version := cmp.Or(r.Status.Version, "unknown")
		if nodes[version] == nil {
			order = append(order, version)
		}
		nodes[version] = append(nodes[version], r.Name)
	}
	if len(order) < 2 {
		return nil
	}
	var parts []string
	for _, version := range order {
		parts = append(parts, version+" on "+strings.Join(nodes[version], ", "))
	}
	return []cluster.Finding{{
		Code:     codeVersionDiffers,
		Severity: cluster.SeverityInfo,
		What:     "nodes run different versions of kuorum",
		Why:      strings.Join(parts, "; "),
		Do:       "kuorum up",
	}}
}
