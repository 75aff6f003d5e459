// Package membership is how a cluster grows and shrinks: tokens, the join of a
// machine, the removal of a node. What the nodes must agree on is kept in
// etcd, below /kuorum, and changed in transactions; etcd's own member list says
// who votes. A join that is not brought to its end is taken back, so that a
// machine which never arrives harms nobody.
package membership

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/datadir"
	"kuorum/internal/etcd"
)

// Keys in etcd.
const (
	specKey     = "/kuorum/cluster.yaml"
	idKey       = "/kuorum/cluster-id" // in an etcd that somebody else runs: whose all of this is
	ownedPrefix = "/kuorum/cluster"    // of both
	joinPrefix  = "/kuorum/joins/"     // NAME: a join, until it has come to its end
	alivePrefix = "/kuorum/alive/"     // NAME: goes when nobody works on that join any more
	leavePrefix = "/kuorum/leaves/"    // NAME: a removal, until its member is gone
	markPrefix  = "/kuorum/marks/"     // NAME: how far the etcd member of a node was
	tokenPrefix = "/kuorum/tokens/"
	turnKey     = "/kuorum/turn"    // name of the node that replaces components
	sweeperKey  = "/kuorum/sweeper" // name of the server that cleans up, where none has etcd's leader
)

// joinLife is how long a join goes on without a sign of life of its machine
// before it is taken back.
const joinLife = 30 * time.Second

// tries is how often a change is begun again because another one came first.
const tries = 10

// errBusy is the end of those tries.
var errBusy = errors.New("other changes of the cluster came first every time")

// ErrForeign says that an etcd which somebody else runs has another cluster's data.
var ErrForeign = errors.New("this etcd has the data of another cluster")

// kubernetesPrefix is where API servers keep everything.
const kubernetesPrefix = "/registry/"

// Register is what the nodes of a cluster agree on beside etcd's member list:
// its cluster.yaml, tokens, and joins under way. Its methods block until a
// quorum of etcd has agreed or their context ends, and may be called from
// several goroutines.
type Register struct {
	etcd *etcd.Client
	id   string // of the cluster, where somebody else runs etcd; empty: its own etcd
}

// NewRegister uses a client that stays the caller's.
func NewRegister(client *etcd.Client) *Register { return &Register{etcd: client} }

// NewSharedRegister is one in an etcd that somebody else runs, who may have given
// it to others too: what is not of the cluster with that ID is refused with
// ErrForeign.
func NewSharedRegister(client *etcd.Client, id string) *Register {
	return &Register{etcd: client, id: id}
}

// Claim is Seed in an etcd that somebody else runs: it writes cluster.yaml and the
// cluster's ID to one that is empty, leaves its own as it is, and refuses any
// other with ErrForeign, having changed nothing.
func (r *Register) Claim(ctx context.Context, spec *cluster.Spec) error {
	text, err := spec.YAML()
	if err != nil {
		return err
	}
	for range tries {
		ours, err := look(ctx, r.etcd, r.id)
		if err != nil || ours {
			return err
		}
		done, err := r.etcd.Commit(ctx, "write cluster.yaml to etcd",
			etcd.Change{Key: specKey, Value: text}, etcd.Change{Key: idKey, Value: []byte(r.id)})
		if err != nil || done {
			return err
		}
	}
	return &cluster.Problem{What: "cannot write cluster.yaml to etcd", Err: errBusy}
}

// Vacant is nil when an etcd has no cluster's data, else ErrForeign, or why nobody
// can tell. It changes nothing.
func Vacant(ctx context.Context, client *etcd.Client) error {
	_, err := look(ctx, client, "")
	return err
}

// look tells whether an etcd is the cluster's with that ID. One that is another's is
// an error.
func look(ctx context.Context, client *etcd.Client, id string) (ours bool, err error) {
	// Before the ID: what is counted may be of another server of ours, which
	// has written the ID first.
	count, err := client.Count(ctx, kubernetesPrefix)
	if err != nil {
		return false, err
	}
	records, err := client.Records(ctx, ownedPrefix)
	if err != nil {
		return false, err
	}
	if err := checkOwner(records, id); err != nil || len(records) > 0 {
		return err == nil, err
	}
	if count > 0 {
		return false, foreign(fmt.Sprintf("it has %d keys below %s and no /kuorum: a Kubernetes cluster that kuorum does not know uses it", count, kubernetesPrefix))
	}
	return false, nil
}

// checkOwner is nil when the records are those of the cluster with that ID, or
// there are none.
func checkOwner(records []etcd.Record, id string) error {
	if len(records) == 0 {
		return nil
	}
	name := "another cluster"
	for _, record := range records {
		if record.Key == idKey && id != "" && string(record.Value) == id {
			return nil
		}
		if record.Key != specKey {
			continue
		}
		if spec, err := cluster.Parse("etcd:"+specKey, record.Value); err == nil {
			name = fmt.Sprintf("cluster %q", spec.Metadata.Name)
		}
	}
	return foreign(fmt.Sprintf("its %s is of %s, which is not this one, whatever its name", specKey, name))
}

func foreign(why string) error {
	return &cluster.Problem{
		What: "etcd cannot be used by this cluster", Why: why, Err: ErrForeign, Exit: cluster.ExitRefused,
		Do: "give each cluster an etcd of its own, with nothing below /registry/ and /kuorum/",
	}
}

// Seed writes the cluster.yaml of a new cluster. Where there is one already it
// stays: every founder may call it, at any time.
func (r *Register) Seed(ctx context.Context, spec *cluster.Spec) error {
	text, err := spec.YAML()
	if err != nil {
		return err
	}
	_, err = r.etcd.Commit(ctx, "write cluster.yaml to etcd", etcd.Change{Key: specKey, Value: text})
	return err
}

// Spec is the cluster.yaml as it is now.
func (r *Register) Spec(ctx context.Context) (*cluster.Spec, error) {
	spec, _, err := r.spec(ctx)
	return spec, err
}

func (r *Register) spec(ctx context.Context) (*cluster.Spec, int64, error) {
	record, err := r.record(ctx)
	if err != nil {
		return nil, 0, err
	}
	if record.Revision == 0 {
		return nil, 0, &cluster.Problem{
			What: "the cluster is not ready for changes of its nodes",
			Why:  "none of its servers has written cluster.yaml to etcd yet, which they do when they start",
			Do:   "kuorum status --wait, then try again",
		}
	}
	spec, err := cluster.Parse("etcd:"+specKey, record.Value)
	return spec, record.Revision, err
}

// record is cluster.yaml as it stands in etcd.
func (r *Register) record(ctx context.Context) (etcd.Record, error) {
	if r.id == "" {
		return r.etcd.Record(ctx, specKey)
	}
	records, err := r.etcd.Records(ctx, ownedPrefix)
	if err != nil {
		return etcd.Record{}, err
	}
	if err := checkOwner(records, r.id); err != nil {
		return etcd.Record{}, err
	}
	for _, record := range records {
		if record.Key == specKey {
			return record, nil
		}
	}
	return etcd.Record{Key: specKey}, nil
}

// Follow calls changed with the cluster.yaml as the member of the register's
// first endpoint has it, and again after each change, until ctx ends or the
// member fails. It needs no quorum.
func (r *Register) Follow(ctx context.Context, changed func(*cluster.Spec)) error {
	return r.etcd.Follow(ctx, specKey, func(record etcd.Record) {
		if record.Revision == 0 {
			return
		}
		if spec, err := cluster.Parse("etcd:"+specKey, record.Value); err == nil { // Commit wrote valid ones only
			changed(spec)
		}
	})
}

// edit changes cluster.yaml, and whatever else changes asks for, in one
// transaction. change is called again when another edit came first.
func (r *Register) edit(ctx context.Context, verb string, change func(*cluster.Spec) (*cluster.Spec, []etcd.Change, error)) (*cluster.Spec, error) {
	for range tries {
		spec, revision, err := r.spec(ctx)
		if err != nil {
			return nil, err
		}
		next, more, err := change(spec)
		if err != nil {
			return nil, err
		}
		text, err := next.YAML()
		if err != nil {
			return nil, err
		}
		done, err := r.etcd.Commit(ctx, verb, append(more, etcd.Change{Key: specKey, Value: text, If: revision})...)
		if err != nil {
			return nil, err
		}
		if done {
			return next, nil
		}
	}
	return nil, &cluster.Problem{What: "cannot " + verb, Err: errBusy, Do: "try again"}
}

// SetTimers writes etcd's timers to cluster.yaml. Members run with them when
// they start next.
func (r *Register) SetTimers(ctx context.Context, heartbeat, election time.Duration) error {
	return r.Change(ctx, "set etcd's timers", func(spec *cluster.Spec) (*cluster.Spec, error) {
		return spec.WithTimers(heartbeat, election)
	})
}

// Change edits cluster.yaml by change, which is called again when another edit
// came first. What change leaves as it is, is not written.
func (r *Register) Change(ctx context.Context, verb string, change func(*cluster.Spec) (*cluster.Spec, error)) error {
	spec, err := r.Spec(ctx)
	if err != nil {
		return err
	}
	next, err := change(spec)
	if err != nil {
		return err
	}
	before, err := spec.YAML()
	if err != nil {
		return err
	}
	if after, err := next.YAML(); err != nil || bytes.Equal(before, after) {
		return err
	}
	_, err = r.edit(ctx, verb, func(spec *cluster.Spec) (*cluster.Spec, []etcd.Change, error) {
		next, err := change(spec)
		return next, nil, err
	})
	return err
}

// turnLife is how long a node may take to be well again before it is another's turn.
const turnLife = 2 * time.Minute

// TakeTurn makes it the turn of the node of that name to replace components, if
// it is nobody's.
func (r *Register) TakeTurn(ctx context.Context, name string) (bool, error) {
	record, err := r.etcd.Record(ctx, turnKey)
	if err != nil || record.Revision != 0 {
		return string(record.Value) == name, err
	}
	lease, err := r.etcd.Grant(ctx, turnLife)
	if err != nil {
		return false, err
	}
	return r.etcd.Commit(ctx, "take a turn", etcd.Change{Key: turnKey, Value: []byte(name), Lease: lease})
}

// EndTurn lets others have theirs, if it was that node's.
func (r *Register) EndTurn(ctx context.Context, name string) error {
	record, err := r.etcd.Record(ctx, turnKey)
	if err != nil || string(record.Value) != name {
		return err
	}
	_, err = r.etcd.Commit(ctx, "end a turn", etcd.Change{Key: turnKey, If: record.Revision})
	return err
}

// Mark notes how far the etcd member of a node was.
func (r *Register) Mark(ctx context.Context, node string, m datadir.Mark) error {
	value, err := encode(m)
	if err != nil {
		return err
	}
	_, err = r.etcd.Commit(ctx, "note how far the etcd of "+node+" was", etcd.Change{Key: markPrefix + node, Value: value, Always: true})
	return err
}

// Marks lists the notes about all nodes as the member at the client's first endpoint
// has them, without a quorum and within a second.
func (r *Register) Marks(ctx context.Context) ([]datadir.Mark, error) {
	records, err := r.etcd.Local(ctx, markPrefix)
	if err != nil {
		return nil, err
	}
	marks := make([]datadir.Mark, len(records))
	for i, record := range records {
		if err := json.Unmarshal(record.Value, &marks[i]); err != nil {
			return nil, fmt.Errorf("cannot read %s in etcd: %w", record.Key, err)
		}
	}
	return marks, nil
}

// join is one under way.
type join struct {
	Name    string       `json:"name"`
	Role    cluster.Role `json:"role"`
	Address string       `json:"address"`
	PeerURL string       `json:"peerURL,omitempty"` // of its member, if it gets one
	Token   string       `json:"token"`             // ID
	Lease   int64        `json:"lease"`
	// Replaces is the node of that name that was in cluster.yaml before, and
	// is there again when the join fails; nil: none.
	Replaces *cluster.Node `json:"replaces,omitempty"`
}

// joins lists those under way, by name, with the revisions of their records.
func (r *Register) joins(ctx context.Context) (map[string]join, map[string]int64, error) {
	records, err := r.etcd.Records(ctx, joinPrefix)
	if err != nil {
		return nil, nil, err
	}
	joins, revisions := map[string]join{}, map[string]int64{}
	for _, record := range records {
		var j join
		if err := json.Unmarshal(record.Value, &j); err != nil {
			return nil, nil, fmt.Errorf("cannot read %s in etcd: %w", record.Key, err)
		}
		joins[j.Name], revisions[j.Name] = j, record.Revision
	}
	return joins, revisions, nil
}

// alive lists the names of joins whose machines still give signs of life.
func (r *Register) alive(ctx context.Context) (map[string]bool, error) {
	records, err := r.etcd.Records(ctx, alivePrefix)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, record := range records {
		names[strings.TrimPrefix(record.Key, alivePrefix)] = true
	}
	return names, nil
}

func encode(value any) ([]byte, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("cannot write a record for etcd: %w", err)
	}
	return data, nil
}
