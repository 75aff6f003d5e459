package etcd

import (
	"context"
	"fmt"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"kuorum/internal/cluster"
)

// Record is a key and its value. Revision is of its last change, 0 when the
// key does not exist.
type Record struct {
	Key      string
	Value    []byte
	Revision int64
}

// Change is one part of a transaction.
type Change struct {
	Key string
	// Value to write; nil removes the key.
	Value []byte
	// If is the revision that the key must still have; 0 means that it must
	// not exist. Always makes the change whatever is there.
	If     int64
	Always bool
	Lease  int64 // the key goes with that lease; 0: none
	// KeepLease leaves the key with the lease that it has.
	KeepLease bool
}

// Records lists the keys with a prefix, in their order, as a quorum has them.
func (c *Client) Records(ctx context.Context, prefix string) ([]Record, error) {
	var records []Record
	err := c.transact(ctx, "read "+prefix+" in etcd", func(a answer) error {
		got, err := a.member.client.Get(ctx, prefix, clientv3.WithPrefix())
		if err != nil {
			return err
		}
		records = nil
		for _, kv := range got.Kvs {
			records = append(records, recordOf(kv))
		}
		return nil
	})
	return records, err
}

// Local lists the keys with a prefix, in their order, as the member at the first
// endpoint has them. It needs no quorum, so that they may be old, and takes a second at
// most; a member that does not run fails it at once.
func (c *Client) Local(ctx context.Context, prefix string) ([]Record, error) {
	limited, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	wait := timeLeft(limited)
	m := c.members[0]
	// Past clientv3, as in maintenance.
	got, err := pb.NewKVClient(m.client.ActiveConnection()).Range(limited, &pb.RangeRequest{
		Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), Serializable: true,
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read %s in etcd: it %s", prefix, m.reason(err, wait))
	}
	var records []Record
	for _, kv := range got.Kvs {
		records = append(records, recordOf(kv))
	}
	return records, nil
}

// Count is how many keys have a prefix, as a quorum has them.
func (c *Client) Count(ctx context.Context, prefix string) (int64, error) {
	var count int64
	err := c.transact(ctx, "count "+prefix+" in etcd", func(a answer) error {
		got, err := a.member.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		count = got.Count
		return nil
	})
	return count, err
}

// Record is one key as a quorum has it.
func (c *Client) Record(ctx context.Context, key string) (Record, error) {
	record := Record{Key: key}
	err := c.transact(ctx, "read "+key+" in etcd", func(a answer) error {
		got, err := a.member.client.Get(ctx, key)
		if err != nil {
			return err
		}
		if len(got.Kvs) == 1 {
			record = recordOf(got.Kvs[0])
		}
		return nil
	})
	return record, err
}

func recordOf(kv *mvccpb.KeyValue) Record {
	return Record{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision}
}

// Commit makes all changes or, when one of their conditions does not hold,
// none: then it returns false. An error leaves open whether they were made.
func (c *Client) Commit(ctx context.Context, verb string, changes ...Change) (bool, error) {
	done := false
	err := c.transact(ctx, verb, func(a answer) error {
		result, err := a.member.client.Txn(ctx).If(conditions(changes)...).Then(operations(changes)...).Commit()
		if err != nil {
			return err
		}
		done = result.Succeeded
		return nil
	})
	return done, err
}

func conditions(changes []Change) []clientv3.Cmp {
	var all []clientv3.Cmp
	for _, c := range changes {
		if !c.Always {
			all = append(all, clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.If))
		}
	}
	return all
}

func operations(changes []Change) []clientv3.Op {
	var all []clientv3.Op
	for _, c := range changes {
		if c.Value == nil {
			all = append(all, clientv3.OpDelete(c.Key))
			continue
		}
		lease := clientv3.WithLease(clientv3.LeaseID(c.Lease))
		if c.KeepLease {
			lease = clientv3.WithIgnoreLease()
		}
		all = append(all, clientv3.OpPut(c.Key, string(c.Value), lease))
	}
	return all
}

// Grant makes a lease: keys that have it go when nobody renews it for life,
// which etcd counts in whole seconds and by the leader's clock.
func (c *Client) Grant(ctx context.Context, life time.Duration) (int64, error) {
	var lease int64
	err := c.transact(ctx, "make a lease in etcd", func(a answer) error {
		granted, err := a.member.client.Grant(ctx, int64(life.Seconds()))
		if err != nil {
			return err
		}
		lease = int64(granted.ID)
		return nil
	})
	return lease, err
}

// Renew starts a lease's life again. One that has ended already gives
// ErrNoLease.
func (c *Client) Renew(ctx context.Context, lease int64) error {
	return c.transact(ctx, "renew a lease in etcd", func(a answer) error {
		_, err := a.member.client.KeepAliveOnce(ctx, clientv3.LeaseID(lease))
		return err
	})
}

// Follow calls changed with the value of key, at first as the member at the
// first endpoint has it now, then after each change, until ctx ends or
// something is wrong. It needs no quorum: a member that is cut off tells what
// it knows. A key that does not exist is told as a Record without Revision.
// Between changes nothing is asked.
func (c *Client) Follow(ctx context.Context, key string, changed func(Record)) error {
	return c.follow(ctx, key, func(records []Record) {
		if len(records) == 0 {
			records = []Record{{Key: key}}
		}
		for _, r := range records {
			changed(r)
		}
	})
}

// FollowCount is Follow for the number of keys with a prefix.
func (c *Client) FollowCount(ctx context.Context, prefix string, changed func(int)) error {
	keys := map[string]bool{}
	return c.follow(ctx, prefix, func(records []Record) {
		for _, r := range records {
			if r.Revision == 0 {
				delete(keys, r.Key)
			} else {
				keys[r.Key] = true
			}
		}
		changed(len(keys))
	}, clientv3.WithPrefix())
}

// follow calls tell with all there is, then with each change. What a change has
// removed has no Revision.
func (c *Client) follow(ctx context.Context, key string, tell func([]Record), options ...clientv3.OpOption) error {
	client := c.members[0].client
	limited, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	got, err := client.Get(limited, key, slices.Concat(options, []clientv3.OpOption{clientv3.WithSerializable()})...)
	if err != nil {
		return fmt.Errorf("cannot read %s in etcd: %w", key, err)
	}
	var records []Record
	for _, kv := range got.Kvs {
		records = append(records, recordOf(kv))
	}
	tell(records)
	for answer := range client.Watch(ctx, key, slices.Concat(options, []clientv3.OpOption{clientv3.WithRev(got.Header.Revision + 1)})...) {
		if err := answer.Err(); err != nil {
			return fmt.Errorf("cannot follow %s in etcd: %w", key, err)
		}
		records = nil
		for _, event := range answer.Events {
			record := Record{Key: string(event.Kv.Key)}
			if event.Type == mvccpb.PUT {
				record = recordOf(event.Kv)
			}
			records = append(records, record)
		}
		if len(records) > 0 {
			tell(records)
		}
	}
	return &cluster.Problem{What: "the watch of " + key + " in etcd ended", Err: context.Cause(ctx)}
}
