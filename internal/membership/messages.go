package membership

import (
	"net/url"
	"strconv"
	"time"

	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/pki"
)

// Paths of the agents' API that this package is behind.
const (
	CheckPath    = "/v1/join/check"    // POST Request, answers Plan; with a token
	JoinPath     = "/v1/join"          // POST Request, answers Admission; with a token
	CancelPath   = "/v1/join/cancel"   // POST Request; with a token
	ProgressPath = "/v1/join/progress" // POST Report, answers Progress; as a node
	SpecPath     = "/v1/cluster"       // GET, answers a cluster.Spec; as a node
	LookPath     = "/v1/cluster/look"  // POST; this balancer asks for cluster.yaml now; as a server, itself or an administrator
	RemovePath   = "/v1/nodes/remove"  // POST Removal, answers Removed; GET with Removal.Query: what that would do; as a server or an administrator
	TokensPath   = "/v1/tokens"        // GET, answers []Token; POST TokenOrder, answers NewToken; as a server or an administrator
	LeftPath     = "/v1/left"          // POST LeftReport: the components of a removed server have stopped, but for etcd; as that server
	RenewPath    = "/v1/renew"         // POST Renewal, answers an Admission without secrets; as that node
	RejoinPath   = "/v1/rejoin"        // POST RejoinRequest, answers a component.InitialCluster; as that node
	RebuildPath  = "/v1/rebuild"       // POST; this very node gets a new member in place of its own; as itself, a server or an administrator
	LeavePath    = "/v1/leave"         // POST; stops this very node and puts it away, without a word to the others; as itself or an administrator
	MarksPath    = "/v1/etcd/marks"    // GET, answers []datadir.Mark, as the node's own member has them; as a node
	RevokePath   = "/v1/tokens/revoke" // POST TokenID; as a server or an administrator
)

// Request is what a machine says of itself that wants to join.
type Request struct {
	Token   string       `json:"token"` // ID.SECRET
	Name    string       `json:"name"`
	Role    cluster.Role `json:"role"`
	Address string       `json:"address"`
	// Nonce is what the machine answers on its ports meanwhile, to prove that
	// it is the one at Address.
	Nonce string `json:"nonce"`
	// Time is by the machine's own clock.
	Time time.Time `json:"time"`
	// Requests are the certificate requests of a node that is no server, see
	// pki.NodeKeys.
	Requests map[string][]byte `json:"requests,omitempty"`
}

// Plan is what a machine must be able to reach before it joins.
type Plan struct {
	Cluster string         `json:"cluster"`
	Servers []cluster.Node `json:"servers"`
	// Etcd lists the etcd nodes; none: the servers have etcd's members.
	Etcd []cluster.Node `json:"etcd,omitempty"`
	// Endpoints are those of an etcd that somebody else runs; none: the cluster runs
	// its own.
	Endpoints []string `json:"endpoints,omitempty"`
	// Replaces tells that a node of this name is a member already, does not
	// answer, and will be replaced.
	Replaces bool `json:"replaces"`
}

// Admission is all that a machine needs to become a node.
type Admission struct {
	Spec *cluster.Spec `json:"spec"`
	// Secrets are the cluster's keys, for a server only.
	Secrets map[string][]byte `json:"secrets,omitempty"`
	// Certificates answer the requests of others; Trust is the certificates of
	// those who signed them.
	Certificates map[string][]byte        `json:"certificates,omitempty"`
	Trust        pki.Trust                `json:"trust"`
	Initial      component.InitialCluster `json:"initial"`
}

// Report is how far the node that joins is, by itself.
type Report struct {
	Name  string              `json:"name"`
	Ready bool                `json:"ready"`
	Etcd  *cluster.EtcdStatus `json:"etcd,omitempty"`
}

// Progress is how far a join is.
type Progress struct {
	Done    bool   `json:"done"`
	Percent int    `json:"percent"` // of the leader's log that the learner has
	Waits   string `json:"waits,omitempty"`
}

// Removal asks that a node be taken out of the cluster.
type Removal struct {
	Name  string `json:"name"`
	Force bool   `json:"force"` // also if etcd loses its quorum
	// Dry only checks, and says what would be: GET asks for that. It is no change
	// of the cluster, for which an agent would not take its turn: who removes an
	// etcd node waits for just that.
	Dry bool `json:"dry,omitempty"`
}

// Query is a Removal as it is asked about.
func (r Removal) Query() string {
	return "?" + url.Values{"name": {r.Name}, "force": {strconv.FormatBool(r.Force)}}.Encode()
}

// RemovalOf is what Query was made of.
func RemovalOf(q url.Values) Removal {
	return Removal{Name: q.Get("name"), Force: q.Get("force") == "true", Dry: true}
}

// LeftReport is said by a server that was removed, and had a member.
type LeftReport struct {
	Name string `json:"name"`
}

// Removed is what a removal did, or would do.
type Removed struct {
	// Behind names a server for which the removal has to wait, see behind; it
	// is told by a dry one only.
	Behind string            `json:"behind,omitempty"`
	Before cluster.QuorumSum `json:"before"`
	After  cluster.QuorumSum `json:"after"`
}

// TokenOrder asks for a token.
type TokenOrder struct {
	Role cluster.Role     `json:"role"`
	Life cluster.Duration `json:"life"`
}

// NewToken is a token with its secret, and how a machine uses it.
type NewToken struct {
	Token
	Secret string `json:"secret"` // ID.SECRET
	Pin    string `json:"pin"`    // of the agents' authority
	Server string `json:"server"` // address to join at
}

// RejoinRequest asks for a new member in place of a node's own.
type RejoinRequest struct {
	Name string `json:"name"`
}

// TokenID names a token.
type TokenID struct {
	ID string `json:"id"`
}
