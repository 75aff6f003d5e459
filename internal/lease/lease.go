// Package lease is upstream's leader elections as an agent has to do with them:
// it reads their Leases, gives up that of a process which it knows to be dead, and
// moves the lead to another server. It never takes a lease: only upstream's
// programs lead.
package lease

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// API is how an API server is asked for a Lease. Update fails with
// kubeapi.ErrConflict when somebody else has changed it since it was read.
type API interface {
	Get(ctx context.Context, path string, into any) error
	Update(ctx context.Context, path, body string) error
}

// Record is what a Lease (coordination.k8s.io/v1) says of an election.
type Record struct {
	Identity    string // of the holder, HOSTNAME_UUID; empty: nobody
	Acquired    time.Time
	Renewed     time.Time
	Lasts       time.Duration
	Transitions int
}

// Holder is the name of the node that leads; empty: nobody does.
func (r Record) Holder() string {
	name, _, _ := strings.Cut(r.Identity, "_")
	return name
}

// object is a Lease as the API has it. What nobody here needs to read is written
// back as it was.
type object struct {
	APIVersion string          `json:"apiVersion"`
	Kind       string          `json:"kind"`
	Metadata   json.RawMessage `json:"metadata"`
	Spec       spec            `json:"spec"`
}

// spec has the fields that client-go's leader election writes; each may be missing.
type spec struct {
	HolderIdentity       string    `json:"holderIdentity"`
	LeaseDurationSeconds int       `json:"leaseDurationSeconds"`
	AcquireTime          microTime `json:"acquireTime"`
	RenewTime            microTime `json:"renewTime"`
	LeaseTransitions     int       `json:"leaseTransitions"`
}

// microTime is written as Kubernetes' MicroTime: always with six digits.
type microTime struct{ time.Time }

// MarshalJSON writes UTC, in microseconds.
func (t microTime) MarshalJSON() ([]byte, error) {
	return json.Marshal(t.UTC().Format("2006-01-02T15:04:05.000000Z07:00"))
}

func (o object) record() Record {
	return Record{
		Identity: o.Spec.HolderIdentity, Acquired: o.Spec.AcquireTime.UTC(), Renewed: o.Spec.RenewTime.UTC(),
		Lasts: time.Duration(o.Spec.LeaseDurationSeconds) * time.Second, Transitions: o.Spec.LeaseTransitions,
	}
}

func path(e cluster.LeaderElection) string {
	return "/apis/coordination.k8s.io/v1/namespaces/" + e.ResourceNamespace + "/leases/" + e.ResourceName
}

// Read asks for an election as etcd has it: it needs a quorum.
func Read(ctx context.Context, api API, e cluster.LeaderElection) (Record, error) {
	o, err := get(ctx, api, e)
	return o.record(), err
}

func get(ctx context.Context, api API, e cluster.LeaderElection) (object, error) {
	var o object
	err := api.Get(ctx, path(e), &o)
	return o, err
}

// Status asks how the program of that name elects its leader. Resource version 0
// means: from the API server's cache, whatever etcd says.
func Status(ctx context.Context, api API, program string, e cluster.LeaderElection) (cluster.LeaseStatus, error) {
	var o object
	if err := api.Get(ctx, path(e)+"?resourceVersion=0", &o); err != nil {
		return cluster.LeaseStatus{}, err
	}
	r := o.record()
	return cluster.LeaseStatus{
		Name: program, Holder: r.Holder(), Since: r.Acquired, Renewed: r.Renewed,
		Lasts: cluster.Duration(r.Lasts), Transitions: r.Transitions,
	}, nil
}
