package node

import (
	"context"
	"strings"
	"time"

	"kuorum/internal/cluster"
)

// leaseObject is the part of a Lease (coordination.k8s.io/v1) that client-go's
// leader election writes: the holder is HOSTNAME_UUID, and each field may be
// missing.
type leaseObject struct {
	Spec struct {
		HolderIdentity       string    `json:"holderIdentity"`
		AcquireTime          time.Time `json:"acquireTime"`
		RenewTime            time.Time `json:"renewTime"`
		LeaseDurationSeconds int       `json:"leaseDurationSeconds"`
		LeaseTransitions     int       `json:"leaseTransitions"`
	} `json:"spec"`
}

// lease asks for one of upstream's elections. Resource version 0 means: from
// the API server's cache, whatever etcd says.
func (c apiClient) lease(ctx context.Context, name string) (cluster.LeaseStatus, error) {
	var lease leaseObject
	if err := c.Get(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/"+name+"?resourceVersion=0", &lease); err != nil {
		return cluster.LeaseStatus{}, err
	}
	return lease.status(name), nil
}

func (l leaseObject) status(name string) cluster.LeaseStatus {
	holder, _, _ := strings.Cut(l.Spec.HolderIdentity, "_")
	return cluster.LeaseStatus{
		Name: name, Holder: holder, Since: l.Spec.AcquireTime.UTC(), Renewed: l.Spec.RenewTime.UTC(),
		Lasts: cluster.Duration(time.Duration(l.Spec.LeaseDurationSeconds) * time.Second), Transitions: l.Spec.LeaseTransitions,
	}
}
