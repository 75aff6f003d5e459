package advise

import (
	"fmt"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// Kinds of etcd's alarms.
const (
	alarmNoSpace = "NOSPACE"
	alarmCorrupt = "CORRUPT"
)

// Limits of etcd's database and of the disk below it.
const (
	quotaNearPercent = 80
	fragmentedBytes  = 100 << 20 // below that it is not worth the pause
	diskFullBytes    = 512 << 20
	diskLowBytes     = 5 << 30
	diskLowPercent   = 10
)

// FsyncGood is what etcd's documentation asks of a disk: 99 of 100 fsyncs are
// done within it.
const FsyncGood = 10 * time.Millisecond

// fsyncBad is a tenth of etcd's default election timeout.
const fsyncBad = 100 * time.Millisecond

// FsyncBad is the fsync time beyond which a disk endangers the leader: a tenth
// of the election timeout, 100 ms at most. An election of 0 is not known.
func FsyncBad(election time.Duration) time.Duration {
	if election <= 0 {
		return fsyncBad
	}
	return min(fsyncBad, election/electionBeats)
}

// alarmed lists the IDs of the members that an alarm names, each once. Alarms
// are part of the replicated data, so the best member knows them all.
func (v *view) alarmed(kind string) []string {
	if v.best == nil {
		return nil
	}
	var ids []string
	seen := map[string]bool{}
	for _, a := range v.best.Alarms {
		if a.Kind == kind && !seen[a.Member] {
			seen[a.Member] = true
			ids = append(ids, a.Member)
		}
	}
	return ids
}

func (v *view) alarms() []cluster.Finding {
	all := v.noSpace()
	for _, id := range v.alarmed(alarmCorrupt) {
		all = append(all, v.corrupt(id))
	}
	return all
}

// noSpace is one finding however many members are full: one is enough to stop
// all writes, and the cure is the same.
func (v *view) noSpace() []cluster.Finding {
	ids := v.alarmed(alarmNoSpace)
	if len(ids) == 0 {
		return nil
	}
	var names, sizes []string
	for _, id := range ids {
		names = append(names, v.nameOf(id))
		if s := v.statusOf(id); s != nil {
			sizes = append(sizes, fmt.Sprintf("the file of %s has %s of a quota of %s, %s of it in use; ",
				v.nameOf(id), cluster.Size(s.DBBytes), cluster.Size(s.QuotaBytes), cluster.Size(s.DBUsedBytes)))
		}
	}
	f := cluster.Finding{
		Code:     codeEtcdNoSpace,
		Severity: cluster.SeverityCritical,
		What:     "etcd takes no writes: the database of " + strings.Join(names, ", ") + " has reached its quota",
		Why:      strings.Join(sizes, "") + "the alarm stays until it is disarmed",
		Do:       "kuorum etcd compact --keep 0 && kuorum etcd defrag && kuorum etcd alarms --disarm",
	}
	if len(ids) == 1 {
		f.Node = v.nodeOfID(ids[0])
	}
	return []cluster.Finding{f}
}

// corrupt is the alarm of a member whose data is damaged. Etcd raises it for
// member 0 when it cannot tell which of them is wrong, and keeps it when the
// member is removed (server/etcdserver, 3.6).
func (v *view) corrupt(id string) cluster.Finding {
	f := cluster.Finding{
		Code:     codeEtcdCorrupt,
		Severity: cluster.SeverityCritical,
		Node:     v.nodeOfID(id),
		What:     fmt.Sprintf("etcd's data on %s differs from the others': no member takes writes", v.nameOf(id)),
		Why:      "etcd compared its members' data and raised the alarm CORRUPT for " + v.nameOf(id),
		Do:       "kuorum etcd rebuild " + v.nodeOfID(id),
	}
	switch {
	case v.listed(id) && f.Node == "":
		f.Do = "kuorum etcd remove " + id + " && kuorum etcd alarms --disarm"
	case id == "0":
		f.What = "etcd's members have different data, and which is wrong is not known"
		f.Why = "etcd compared its members' data and raised the alarm CORRUPT for none of them"
		f.Do = "Compare the members (docs/findings.md, etcd-corrupt) before anything is removed or written."
	case !v.listed(id):
		f.What = "etcd takes no writes: the alarm of a damaged member that was removed is still there"
		f.Why = fmt.Sprintf("the alarm CORRUPT names member %s, which is in no list any more", id)
		f.Do = "kuorum etcd alarms --disarm"
	case !cluster.Without(v.voters(), v.nameOf(id)).Holds():
		f.Do = "Bring the other voters back first: without the damaged one there is no quorum."
	}
	return f
}

// nodeOfID is the node of the member with that ID, or nothing.
func (v *view) nodeOfID(id string) string {
	for _, m := range v.members {
		if m.ID == id {
			return m.node
		}
	}
	return ""
}

// space is how full and how fragmented the databases are.
func (v *view) space() []cluster.Finding {
	if len(v.alarmed(alarmNoSpace)) > 0 {
		return nil // the others' files are as large, and the cure is the same
	}
	var all []cluster.Finding
	for _, m := range v.members {
		if v.faultOf(m) != faultNone {
			continue
		}
		s := m.status
		f := cluster.Finding{
			Node: m.node,
			Why:  fmt.Sprintf("the file has %s of a quota of %s, %s of it in use", cluster.Size(s.DBBytes), cluster.Size(s.QuotaBytes), cluster.Size(s.DBUsedBytes)),
			Do:   "kuorum etcd defrag",
		}
		halfEmpty := s.DBUsedBytes < s.DBBytes/2
		switch {
		case s.QuotaBytes > 0 && s.DBBytes >= s.QuotaBytes/100*quotaNearPercent:
			f.Code, f.Severity = codeEtcdQuotaNear, cluster.SeverityWarning
			f.What = fmt.Sprintf("etcd's database on %s is near its quota, where writes stop", m.name)
			if !halfEmpty {
				f.Do = "kuorum etcd compact && kuorum etcd defrag"
			}
		case s.DBBytes > fragmentedBytes && halfEmpty:
			f.Code, f.Severity = codeEtcdFragmented, cluster.SeverityInfo
			f.What = fmt.Sprintf("less than half of etcd's database file on %s is in use", m.name)
		default:
			continue
		}
		all = append(all, f)
	}
	return all
}

// disk is how full a node's disk is, and how fast for etcd.
func (v *view) disk(r cluster.NodeReport) []cluster.Finding {
	var all []cluster.Finding
	if f, low := diskSpace(r); low {
		all = append(all, f)
	}
	if f, slow := v.diskSpeed(r); slow {
		all = append(all, f)
	}
	return all
}

func diskSpace(r cluster.NodeReport) (f cluster.Finding, low bool) {
	d := r.Status.Disk
	f = cluster.Finding{
		Node: r.Name,
		Why:  fmt.Sprintf("%s of %s are free", cluster.Size(d.FreeBytes), cluster.Size(d.SizeBytes)),
		Do:   fmt.Sprintf("Free space on the file system of /var/lib/kuorum of %s.", r.Name),
	}
	switch {
	case d.SizeBytes <= 0: // not known
		return f, false
	case d.FreeBytes < diskFullBytes:
		f.Code, f.Severity = codeDiskFull, cluster.SeverityCritical
		f.What = fmt.Sprintf("the disk of %s is full", r.Name)
	case d.FreeBytes < diskLowBytes && d.FreeBytes < d.SizeBytes/100*diskLowPercent:
		f.Code, f.Severity = codeDiskLow, cluster.SeverityWarning
		f.What = fmt.Sprintf("the disk of %s is nearly full", r.Name)
	default:
		return f, false
	}
	return f, true
}

func (v *view) diskSpeed(r cluster.NodeReport) (f cluster.Finding, slow bool) {
	s := etcdOf(r)
	if s == nil || time.Duration(s.FsyncP99) <= FsyncGood {
		return f, false
	}
	bad := FsyncBad(time.Duration(v.spec.Spec.Etcd.ElectionTimeout))
	f = cluster.Finding{
		Code:     codeDiskSlow,
		Severity: cluster.SeverityInfo,
		Node:     r.Name,
		What:     fmt.Sprintf("the disk of %s is slow for etcd", r.Name),
		Why: fmt.Sprintf("the slowest 1 %% of its fsyncs take %s or more; %s is good, %s endangers the leader",
			time.Duration(s.FsyncP99).Round(time.Millisecond), FsyncGood, bad),
		Do: "Give etcd a faster disk, or take other load off this one.",
	}
	if time.Duration(s.FsyncP99) > bad {
		f.Severity = cluster.SeverityWarning
	}
	return f, true
}
