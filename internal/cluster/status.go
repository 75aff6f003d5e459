package cluster

import (
	"fmt"
	"time"
)

// NodeStatus is what a node's agent tells of it. Every value is probed when
// asked for, never remembered; only FsyncP99 looks back, over a minute.
type NodeStatus struct {
	Name         string              `json:"name"`
	Role         Role                `json:"role"`
	Version      string              `json:"version"` // of kuorum
	Time         time.Time           `json:"time"`    // by the node's own clock, as it answered
	Started      time.Time           `json:"started"` // of the agent, not of the node
	Ready        bool                `json:"ready"`   // all components are
	Components   []ComponentStatus   `json:"components"`
	Etcd         *EtcdStatus         `json:"etcd,omitempty"`     // nil where no member runs
	External     *ExternalEtcdStatus `json:"external,omitempty"` // on servers, where somebody else runs etcd
	Leaders      []LeaseStatus       `json:"leaders,omitempty"`  // as the node's own API server has them
	VIP          *VIPStatus          `json:"vip,omitempty"`      // on servers, where there is a virtual IP
	Disk         DiskStatus          `json:"disk"`
	Certificates []CertificateStatus `json:"certificates,omitempty"`
	// Config is Spec.Digest of the cluster.yaml that the node follows.
	Config string `json:"config"`
	// Stale names components that run as an earlier cluster.yaml had them: they
	// are restarted in the node's turn.
	Stale []string `json:"stale,omitempty"`
	// Lost is the address that the node has in cluster.yaml and not on its
	// machine, which has Addresses. Nothing of the node is started then.
	Lost      string   `json:"lost,omitempty"`
	Addresses []string `json:"addresses,omitempty"`
}

// ComponentStatus is one program of a node.
type ComponentStatus struct {
	Name string `json:"name"`
	// Phase is waiting, starting, ready, backoff, stopping or stopped.
	Phase    string    `json:"phase"`
	PID      int       `json:"pid,omitempty"` // in the machine's own numbering
	Since    time.Time `json:"since"`         // of the phase
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
	Message  string    `json:"message,omitempty"` // why it is not ready
}

// EtcdStatus is one etcd member as it sees itself and the others. A member
// without a quorum answers all of it as well: nothing here needs consensus.
type EtcdStatus struct {
	Error   string `json:"error,omitempty"`   // why the member does not answer; all else but Old is empty then
	ID      string `json:"id"`                // hexadecimal, as etcdctl prints it
	Cluster string `json:"cluster,omitempty"` // its cluster's ID
	Learner bool   `json:"learner"`
	Leader  string `json:"leader,omitempty"` // ID; empty: it knows of none
	Version string `json:"version"`
	Term    uint64 `json:"term"`
	// RaftIndex is the last entry it has, AppliedIndex the last that it has
	// applied to its database.
	RaftIndex    uint64       `json:"raftIndex"`
	AppliedIndex uint64       `json:"appliedIndex"`
	Revision     int64        `json:"revision"`
	DBBytes      int64        `json:"dbBytes"`     // of the file
	DBUsedBytes  int64        `json:"dbUsedBytes"` // in it; the rest is free pages
	QuotaBytes   int64        `json:"quotaBytes"`  // writes stop there
	Alarms       []EtcdAlarm  `json:"alarms,omitempty"`
	Members      []EtcdMember `json:"members"`
	// FsyncP99 is how long the slowest hundredth of its log's fsyncs took in
	// the last minute; 0 when there were none.
	FsyncP99 Duration `json:"fsyncP99"`
	// PeerRTT is how far the furthest other member is; 0 when none is known.
	PeerRTT Duration `json:"peerRTT"`
	// Heartbeat and ElectionTimeout are the timers that it was started with.
	Heartbeat       Duration `json:"heartbeat"`
	ElectionTimeout Duration `json:"electionTimeout"`
	// Old is why the node does not start it; nil: it does.
	Old *OldData `json:"old,omitempty"`
}

// OldData tells that a member's data directory is an older copy of what it was.
type OldData struct {
	Has uint64    `json:"has"` // the last entry of its log
	Had uint64    `json:"had"` // an entry that it is known to have had
	At  time.Time `json:"at"`  // when that was seen
}

// Why is the sentence for people.
func (o OldData) Why() string {
	return fmt.Sprintf("its log ends at entry %d; it had %d at %s. An older copy was put back: it no longer has what it has acknowledged",
		o.Has, o.Had, o.At.UTC().Format(time.RFC3339))
}

// EtcdAlarm is an alarm that stays until somebody disarms it.
type EtcdAlarm struct {
	Member string `json:"member"` // ID
	Kind   string `json:"kind"`   // NOSPACE or CORRUPT
}

// EtcdMember is one entry of a member list.
type EtcdMember struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"` // empty until it has started for the first time
	Learner  bool     `json:"learner"`
	PeerURLs []string `json:"peerURLs"`
	// ClientURLs are where it answers clients, by its own word; none until it has
	// started.
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// ExternalEtcdStatus is an etcd that somebody else runs, as one server sees it.
type ExternalEtcdStatus struct {
	Endpoints []EtcdEndpoint `json:"endpoints"` // in the order of cluster.yaml
	// Agrees tells that a quorum has just answered, also if its members cannot all be
	// asked how they are.
	Agrees bool `json:"agrees,omitempty"`
	// Foreign is why this cluster must not use it: there is another's data. Empty:
	// none is known of.
	Foreign string `json:"foreign,omitempty"`
}

// EtcdEndpoint is the member behind one endpoint, or why it does not answer.
type EtcdEndpoint struct {
	URL string `json:"url"`
	EtcdStatus
}

// The programs of which the servers elect one to do the work.
const (
	ControllerManagerName = "kube-controller-manager"
	SchedulerName         = "kube-scheduler"
)

// LeaseStatus is one of upstream's leader elections.
type LeaseStatus struct {
	Name        string    `json:"name"`   // of the program, whatever its lease is called
	Holder      string    `json:"holder"` // a node's name; empty: nobody
	Since       time.Time `json:"since"`
	Renewed     time.Time `json:"renewed"`
	Lasts       Duration  `json:"lasts"` // after Renewed others may take it
	Transitions int       `json:"transitions"`
}

// States of a server that may hold the virtual IP (RFC 9568, section 6.4). One that
// takes no part yet has neither.
const (
	VIPActive = "active" // it holds the address
	VIPBackup = "backup"
)

// VIPStatus is the virtual IP as one server sees it.
type VIPStatus struct {
	Error   string `json:"error,omitempty"` // why it is not known; all else but Address is empty then
	Address string `json:"address"`
	// State is VIPActive, VIPBackup, or initialize.
	State string `json:"state"`
	// Holder is the address of the server that holds it, empty when nobody is
	// known to.
	Holder   string `json:"holder,omitempty"`
	Priority int    `json:"priority"` // as advertised
	// Impaired tells that the server's balancer reaches no API server, and would
	// rather not hold the address.
	Impaired    bool        `json:"impaired,omitempty"`
	Since       time.Time   `json:"since"` // of State
	Transitions int         `json:"transitions"`
	Changes     []VIPChange `json:"changes,omitempty"` // the last ones, the oldest first
	// Dropped counts packets that were not heard, by the reason.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
}

// VIPChange is one change of a server's part in holding the virtual IP.
type VIPChange struct {
	At     time.Time `json:"at"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Reason string    `json:"reason"`
	Peer   string    `json:"peer,omitempty"` // the server that it is about
}

// DiskStatus is the file system of /var/lib/kuorum.
type DiskStatus struct {
	FreeBytes int64 `json:"freeBytes"` // for root
	SizeBytes int64 `json:"sizeBytes"`
}

// CertificateStatus is one certificate on a node's disk.
type CertificateStatus struct {
	File  string    `json:"file"` // below /etc/kuorum
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	// Renew is when the node makes it anew; zero for an authority, which lives
	// until it is rotated.
	Renew time.Time `json:"renew,omitzero"`
	// By is the name of the authority that signed it, Key names that authority's
	// key in hexadecimal. An authority has signed itself. A file with several
	// authorities is listed once for each: the first of them signs.
	By  string `json:"by,omitempty"`
	Key string `json:"key,omitempty"`
}

// NodeReport is a node as somebody else sees it: what its agent answered, or
// why it did not.
type NodeReport struct {
	Name    string `json:"name"`
	Role    Role   `json:"role"`
	Address string `json:"address"`
	// Error is why the agent does not answer, in words for people; Status is
	// nil then.
	Error  string      `json:"error,omitempty"`
	Status *NodeStatus `json:"status,omitempty"`
	// ClockOffset is by how much the node's clock is ahead of the asker's, to
	// half of the answer's time.
	ClockOffset Duration `json:"clockOffset"`
}

// State of a cluster in one word.
type State string

// States. Degraded: the quorum holds, and something is not as it should be.
const (
	StateHealthy  State = "healthy"
	StateDegraded State = "degraded"
	StateNoQuorum State = "no quorum"
)

// Status is a whole cluster as it is now.
type Status struct {
	Cluster  string        `json:"cluster"`
	Time     time.Time     `json:"time"` // by the asker's clock
	State    State         `json:"state"`
	Quorum   QuorumSum     `json:"quorum"`
	Leader   string        `json:"leader,omitempty"` // name of the member that leads etcd
	Leaders  []LeaseStatus `json:"leaders,omitempty"`
	Nodes    []NodeReport  `json:"nodes"`
	Findings []Finding     `json:"findings"`
}

// Severity of a finding.
type Severity string

// Severities: something does not work; something will not, or works with
// less reserve than it should; something to know.
const (
	SeverityCritical Severity = "critical"
	SeverityWarning  Severity = "warning"
	SeverityInfo     Severity = "info"
)

// Finding is one thing that is wrong, or will be: what, why and what to do
// about it. Codes are API, see docs/findings.md.
type Finding struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	Node     string   `json:"node,omitempty"` // empty: the cluster's
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"`
	Do       string   `json:"do,omitempty"`
}

// Size is a number of bytes as findings and checks write it.
func Size(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
