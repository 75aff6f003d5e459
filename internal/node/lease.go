package node

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"kuorum/internal/cluster"
)

// lease asks for one of upstream's elections. Resource version 0 means: from
// the API server's cache, whatever etcd says.
func (c *apiClient) lease(ctx context.Context, name string) (cluster.LeaseStatus, error) {
	data, err := c.get(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/"+name+"?resourceVersion=0")
	if err != nil {
		return cluster.LeaseStatus{}, err
	}
	var lease coordinationv1.Lease
	if err := json.Unmarshal(data, &lease); err != nil {
		return cluster.LeaseStatus{}, fmt.Errorf("cannot read lease %s: %w", name, err)
	}
	return leaseStatus(name, lease.Spec), nil
}

// leaseStatus reads a lease as client-go's leader election writes it: the
// holder is HOSTNAME_UUID, and each field may be missing.
func leaseStatus(name string, spec coordinationv1.LeaseSpec) cluster.LeaseStatus {
	s := cluster.LeaseStatus{Name: name}
	if spec.HolderIdentity != nil {
		s.Holder, _, _ = strings.Cut(*spec.HolderIdentity, "_")
	}
	if spec.AcquireTime != nil {
		s.Since = spec.AcquireTime.UTC()
	}
	if spec.RenewTime != nil {
		s.Renewed = spec.RenewTime.UTC()
	}
	if spec.LeaseDurationSeconds != nil {
		s.Lasts = cluster.Duration(time.Duration(*spec.LeaseDurationSeconds) * time.Second)
	}
	if spec.LeaseTransitions != nil {
		s.Transitions = int(*spec.LeaseTransitions)
	}
	return s
}
