package membership

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/etcd"
	"kuorum/internal/pki"
)

// Limits of a token's life.
const (
	MinTokenLife     = time.Second
	MaxTokenLife     = 30 * 24 * time.Hour
	DefaultTokenLife = time.Hour
)

// kept is for how long a token that has expired is remembered, so that whoever
// uses it hears why it does not work.
const kept = 24 * time.Hour

// Token is what the cluster remembers of a join token: not its secret.
type Token struct {
	ID      string       `json:"id"`
	Hash    string       `json:"hash,omitempty"`
	Role    cluster.Role `json:"role"`
	Created time.Time    `json:"created"`
	Expires time.Time    `json:"expires"`
	UsedBy  string       `json:"usedBy,omitempty"` // the node's name
	// Spent tells that the node has joined: the token admits nobody any more.
	Spent bool `json:"spent,omitempty"`
}

// CreateToken makes a token for one node of that role. It is the only time
// that its secret is seen.
func (r *Register) CreateToken(ctx context.Context, role cluster.Role, life time.Duration, now time.Time) (pki.Token, Token, error) {
	if !slices.Contains(cluster.Roles(), role) {
		return pki.Token{}, Token{}, &cluster.Problem{
			What: fmt.Sprintf("%q is not a role", role), Do: "name one of server, worker and etcd", Exit: cluster.ExitUsage,
		}
	}
	if err := r.takes(ctx, role); err != nil {
		return pki.Token{}, Token{}, err
	}
	if life < MinTokenLife || life > MaxTokenLife {
		return pki.Token{}, Token{}, &cluster.Problem{
			What: fmt.Sprintf("a token cannot live for %v", life), Do: fmt.Sprintf("choose from %v to %v", MinTokenLife, MaxTokenLife), Exit: cluster.ExitUsage,
		}
	}
	secret, err := pki.NewToken()
	if err != nil {
		return pki.Token{}, Token{}, err
	}
	now = now.UTC().Truncate(time.Second)
	token := Token{ID: secret.ID, Hash: secret.Hash(), Role: role, Created: now, Expires: now.Add(life)}
	data, err := encode(token)
	if err != nil {
		return pki.Token{}, Token{}, err
	}
	lease, err := r.etcd.Grant(ctx, life+kept)
	if err != nil {
		return pki.Token{}, Token{}, err
	}
	_, err = r.etcd.Commit(ctx, "write a join token to etcd", etcd.Change{Key: tokenPrefix + token.ID, Value: data, Lease: lease})
	return secret, token, err
}

// takes is nil when nodes of that role can join at all.
func (r *Register) takes(ctx context.Context, role cluster.Role) error {
	if role != cluster.RoleEtcd && role != cluster.RoleBalancer {
		return nil
	}
	spec, err := r.Spec(ctx)
	switch {
	case err != nil:
		return err
	case role == cluster.RoleBalancer && spec.Spec.Endpoint.Type != cluster.EndpointHAProxy:
		return &cluster.Problem{
			What: "no balancer can join cluster " + spec.Metadata.Name, Why: fmt.Sprintf("its endpoint is of the type %q, and stays so", spec.Spec.Endpoint.Type),
			Do: "kuorum lb config    (the files for a balancer of your own)", Exit: cluster.ExitRefused,
		}
	case role == cluster.RoleBalancer || spec.EtcdApart():
		return nil
	}
	why := "its etcd is on the servers, and stays there"
	if spec.EtcdExternal() {
		why = "somebody else runs its etcd"
	}
	return &cluster.Problem{
		What: "no etcd node can join cluster " + spec.Metadata.Name,
		Why:  why, Do: "let a server join: kuorum token create", Exit: cluster.ExitRefused,
	}
}

// Tokens lists all tokens, those that have expired within a day included, the
// oldest first. Their hashes are left out.
func (r *Register) Tokens(ctx context.Context) ([]Token, error) {
	records, err := r.etcd.Records(ctx, tokenPrefix)
	if err != nil {
		return nil, err
	}
	tokens := []Token{}
	for _, record := range records {
		token, err := tokenOf(record)
		if err != nil {
			return nil, err
		}
		token.Hash = ""
		tokens = append(tokens, token)
	}
	slices.SortStableFunc(tokens, func(a, b Token) int { return a.Created.Compare(b.Created) })
	return tokens, nil
}

// DeleteToken revokes a token; one that does not exist is an error.
func (r *Register) DeleteToken(ctx context.Context, id string) error {
	record, err := r.etcd.Record(ctx, tokenPrefix+id)
	if err != nil {
		return err
	}
	if record.Revision == 0 {
		return &cluster.Problem{What: fmt.Sprintf("there is no token %q", id), Do: "kuorum token list", Exit: cluster.ExitUsage}
	}
	_, err = r.etcd.Commit(ctx, "revoke a join token", etcd.Change{Key: record.Key, Always: true})
	return err
}

// token finds what is remembered of a token that somebody shows, and checks
// that it admits a node of that name and role.
func (r *Register) token(ctx context.Context, text, name string, role cluster.Role, now time.Time) (Token, etcd.Record, error) {
	shown, err := pki.ParseToken(text)
	if err != nil {
		return Token{}, etcd.Record{}, &cluster.Problem{What: "this is not a join token", Err: err, Do: "kuorum token create", Exit: cluster.ExitUsage}
	}
	record, err := r.etcd.Record(ctx, tokenPrefix+shown.ID)
	if err != nil {
		return Token{}, etcd.Record{}, err
	}
	if record.Revision == 0 {
		return Token{}, etcd.Record{}, refusedToken("it is not known here: it was revoked, has expired long ago, or is another cluster's")
	}
	known, err := tokenOf(record)
	if err != nil {
		return Token{}, etcd.Record{}, err
	}
	return known, record, known.admits(shown, name, role, now)
}

// spend is the change by which a token admits nobody any more; nothing for one
// that is not there.
func (r *Register) spend(ctx context.Context, id string) ([]etcd.Change, error) {
	if id == "" {
		return nil, nil
	}
	record, err := r.etcd.Record(ctx, tokenPrefix+id)
	if err != nil || record.Revision == 0 {
		return nil, err
	}
	token, err := tokenOf(record)
	if err != nil {
		return nil, err
	}
	token.Spent = true
	data, err := encode(token)
	return []etcd.Change{{Key: record.Key, Value: data, If: record.Revision, KeepLease: true}}, err
}

func tokenOf(record etcd.Record) (Token, error) {
	var token Token
	if err := json.Unmarshal(record.Value, &token); err != nil {
		return Token{}, fmt.Errorf("cannot read %s in etcd: %w", record.Key, err)
	}
	return token, nil
}

// admits is nil when a token lets a node in. The secret is checked first: who
// does not have it learns nothing else. A token is good for one node; for that
// it may be shown again until it has joined, since a join that was interrupted
// is run once more.
func (t Token) admits(shown pki.Token, name string, role cluster.Role, now time.Time) error {
	switch {
	case !shown.Matches(t.Hash):
		return refusedToken("its secret is wrong")
	case !now.Before(t.Expires):
		return refusedToken("it expired at " + t.Expires.UTC().Format(time.RFC3339))
	case role != t.Role:
		return refusedToken(fmt.Sprintf("it is for %s, not for %s", t.Role.Noun(), role.Noun()))
	case t.Spent || t.UsedBy != "" && t.UsedBy != name:
		return refusedToken("it was used by " + t.UsedBy + ": a token is good for one node")
	}
	return nil
}

func refusedToken(why string) error {
	return &cluster.Problem{What: "the join token is refused", Why: why, Do: "kuorum token create    (on a node of the cluster)", Exit: cluster.ExitRefused}
}
