package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"kuorum/internal/agent"
	"kuorum/internal/cluster"
	"kuorum/internal/component"
	"kuorum/internal/doctor"
	"kuorum/internal/pki"
	"kuorum/internal/step"
)

const (
	progressEvery = 250 * time.Millisecond
	// admitPatience covers the time that a server waits for etcd to settle.
	admitPatience = settle + 10*time.Second
	checkPatience = 10 * time.Second
)

// Joiner makes this machine a node of a cluster.
type Joiner struct {
	Servers []string // addresses of servers to ask, at least one
	Token   string
	Pin     string // of the agents' authority
	Node    cluster.Node
	Dir     string // /etc/kuorum
	Data    string // /var/lib/kuorum
	// Status is what this machine's own agent says; an error while it does not
	// answer.
	Status func(context.Context) (cluster.NodeStatus, error)
	// Tell is called with how far the learner is, now and then.
	Tell func(Progress)

	agents    *agent.Client // asks server, the one that answered first
	server    string
	plan      Plan
	keys      pki.NodeKeys
	admission Admission
}

// Steps is the whole procedure. Until the files are written nothing of it
// stays on this machine; if it fails after the cluster has let the machine in,
// the cluster takes that back, at once or after 30 s of silence.
func (j *Joiner) Steps() []step.Step {
	await := step.Step{Name: "wait until the components of " + j.Node.Name + " are ready", Do: j.awaitReady}
	var votes []step.Step
	switch j.Node.Role {
	case cluster.RoleServer: // whether it gets a member is for the cluster to say
		votes = []step.Step{{Name: "wait until " + j.Node.Name + " has caught up and takes part", Do: j.await}}
	case cluster.RoleEtcd:
		votes = []step.Step{{Name: "wait until the etcd of " + j.Node.Name + " has caught up and votes", Do: j.await}}
	default:
		await.Do = j.await // a worker has joined when it is ready
	}
	return append(append([]step.Step{
		{Name: "check this machine", Do: j.checkMachine},
		{Name: "check the token, and the ways between the machines", Do: j.checkWays},
		{Name: "join the cluster", Do: j.join},
		{Name: "write the files of " + j.Node.Name, Do: j.write},
	}, votes...), await)
}

func (j *Joiner) checkMachine(context.Context) error {
	disk, err := Read(j.Dir)
	if err == nil {
		return &cluster.Problem{
			What: fmt.Sprintf("this machine is node %s of cluster %s already", disk.Name, disk.Spec.Metadata.Name),
			Do:   "kuorum leave    (then join again)", Exit: cluster.ExitRefused,
		}
	}
	if !errors.Is(err, ErrNoNode) {
		return err
	}
	member := filepath.Join(j.Data, "etcd", "member")
	if _, err := os.Stat(member); err == nil {
		return &cluster.Problem{
			What: "this machine has the data of an etcd member",
			Why:  member + " exists: etcd would go on as that member, with old data, and could lose writes that others have acknowledged",
			Do:   "kuorum leave --force    (moves it away, to " + filepath.Join(j.Data, leftDir) + ")", Exit: cluster.ExitRefused,
		}
	}
	if j.Node.Role == cluster.RoleBalancer {
		if err := doctor.Balancer().Problem(); err != nil {
			return err
		}
	}
	_, err = j.client(j.Servers[0])
	return err
}

// client asks a server whose authority has the pin.
func (j *Joiner) client(server string) (*agent.Client, error) {
	config, err := pki.JoinTLS(j.Pin, server)
	if err != nil {
		return nil, &cluster.Problem{What: "the pin of the authority cannot be used", Err: err, Do: "kuorum token create", Exit: cluster.ExitUsage}
	}
	return agent.NewClient(config, nil), nil
}

func (j *Joiner) request(nonce string) Request {
	return Request{
		Token: j.Token, Name: j.Node.Name, Role: j.Node.Role, Address: j.Node.Address, Nonce: nonce, Time: time.Now().UTC(),
	}
}

func (j *Joiner) checkWays(ctx context.Context) error {
	b, err := light(ctx, j.Node)
	if err != nil {
		return err
	}
	defer b.quench()
	if err := j.ask(ctx, b.nonce); err != nil {
		return err
	}
	return reachAll(ctx, j.Node.Role, j.plan, restartPatience)
}

// ask puts the question to one server after the other. What one refuses, the
// others would refuse as well; one that does not answer is passed over.
func (j *Joiner) ask(ctx context.Context, nonce string) error {
	limited, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	var silent []error
	for _, server := range j.Servers {
		agents, err := j.client(server)
		if err != nil {
			return err
		}
		err = agents.Call(limited, server, CheckPath, j.request(nonce), &j.plan)
		if err == nil {
			j.agents, j.server = agents, server
			return nil
		}
		if errors.Is(err, pki.ErrOtherAuthority) {
			return &cluster.Problem{
				What: "the token is not shown to " + server, Err: err, Do: "kuorum token create    (on a node of the cluster)", Exit: cluster.ExitRefused,
			}
		}
		problem, refused := errors.AsType[*cluster.Problem](err)
		if refused && problem.ExitCode() != cluster.ExitNoQuorum {
			return err
		}
		silent = append(silent, fmt.Errorf("%s: %s", server, agent.Explain(err)))
	}
	return &cluster.Problem{
		What: "no server of the cluster answers", Err: errors.Join(silent...),
		Do: "kuorum status    (on one of them)", Exit: cluster.ExitNoQuorum,
	}
}

func (j *Joiner) join(ctx context.Context) error {
	r := j.request("")
	if j.Node.Role != cluster.RoleServer {
		keys, err := pki.NewNodeKeys(j.Node.Role)
		if err != nil {
			return err
		}
		j.keys = keys
		if r.Requests, err = keys.Requests(); err != nil {
			return err
		}
	}
	limited, cancel := context.WithTimeout(ctx, admitPatience)
	defer cancel()
	err := j.agents.Call(limited, j.server, JoinPath, r, &j.admission)
	if err == nil {
		return nil
	}
	if _, refused := errors.AsType[*cluster.Problem](err); refused {
		return err
	}
	return errors.Join(fmt.Errorf("cannot join at %s: %s", j.server, agent.Explain(err)), j.cancel(ctx))
}

// cancel tells the cluster that nothing will come of it. It would find out.
func (j *Joiner) cancel(ctx context.Context) error {
	limited, done := context.WithTimeout(context.WithoutCancel(ctx), checkPatience)
	defer done()
	if err := j.agents.Call(limited, j.server, CancelPath, j.request(""), nil); err != nil {
		return fmt.Errorf("the cluster takes the join back by itself within %v; it could not be told: %w", joinLife, err)
	}
	return nil
}

func (j *Joiner) write(ctx context.Context) error {
	if err := j.writeDisk(); err != nil {
		return errors.Join(err, j.cancel(ctx))
	}
	return nil
}

func (j *Joiner) writeDisk() error {
	spec := j.admission.Spec
	node, ok := spec.Node(j.Node.Name)
	if !ok {
		return fmt.Errorf("the cluster's answer has no node %s", j.Node.Name)
	}
	files, err := j.files(spec, node)
	if err != nil {
		return err
	}
	return Disk{Spec: spec, Name: node.Name, Files: files, Initial: j.admission.Initial, Joining: true}.Write(j.Dir)
}

func (j *Joiner) files(spec *cluster.Spec, node cluster.Node) ([]pki.File, error) {
	if node.Role != cluster.RoleServer {
		return j.keys.Files(spec, node, j.admission.Certificates, j.admission.Trust)
	}
	set, err := pki.ParseSet(j.admission.Secrets)
	if err != nil {
		return nil, err
	}
	set.LeafLife = time.Duration(spec.Spec.Certificates.Life)
	return set.NodeFiles(spec, node, time.Now())
}

// await follows the join to its end. The node's agent does the same, so that
// the join also ends well when this command is interrupted.
func (j *Joiner) await(ctx context.Context) error {
	agents, err := NodeClient(j.Dir)
	if err != nil {
		return err
	}
	return Finish{Agents: agents, Servers: j.admission.Spec.Servers(), Self: j.Node, Status: j.Status, Tell: j.Tell}.Run(ctx)
}

func (j *Joiner) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		s, err := j.Status(ctx)
		if err == nil && s.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return &cluster.Problem{
				What: j.Node.Name + " has joined, and its components are not ready yet", Err: err,
				Do: "kuorum status", Exit: cluster.ExitTimeout,
			}
		case <-tick.C:
		}
	}
}

// Finish brings the join of a node to its end: it reports the node's state to
// the servers until its member votes or, without one, its components are ready.
type Finish struct {
	Agents  *agent.Client
	Servers []cluster.Node // the node itself is passed over
	Self    cluster.Node
	// Status is what the node's own agent says.
	Status func(context.Context) (cluster.NodeStatus, error)
	// Tell is called with each answer.
	Tell func(Progress)
}

// Run blocks until the join has come to its end, until ctx ends, or until the
// cluster has taken the join back.
func (f Finish) Run(ctx context.Context) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	var last error
	for {
		p, err := f.report(ctx)
		if err == nil && p.Done {
			return nil
		}
		if problem, ok := errors.AsType[*cluster.Problem](err); ok && problem.ExitCode() == cluster.ExitRefused {
			return err
		}
		if err == nil {
			f.Tell(p)
			err = errors.New(p.Waits)
		}
		last = err
		select {
		case <-ctx.Done():
			return &cluster.Problem{
				What: f.Self.Name + " has not joined yet: it goes on by itself", Err: last,
				Do: "kuorum status --wait", Exit: cluster.ExitTimeout,
			}
		case <-tick.C:
		}
	}
}

// report is one sign of life, to the first server that takes it.
func (f Finish) report(ctx context.Context) (Progress, error) {
	r := Report{Name: f.Self.Name}
	s, err := f.Status(ctx)
	if err == nil {
		r.Ready, r.Etcd = s.Ready, s.Etcd
	}
	var p Progress
	others := agent.Servers{Client: f.Agents, Nodes: f.Servers, But: f.Self.Name, Patience: checkPatience}
	err = others.Call(ctx, ProgressPath, r, &p)
	return p, err
}

// NodeClient asks other agents as the node whose files are below dir. It reads
// its certificate again for each connection: the node renews it.
func NodeClient(dir string) (*agent.Client, error) {
	files := map[string][]byte{}
	for _, name := range []string{"agent-ca.crt", "agent.crt", "agent.key"} {
		data, err := os.ReadFile(filepath.Join(dir, "pki", name))
		if err != nil {
			return nil, fmt.Errorf("cannot talk to agents: %w", err)
		}
		files[name] = data
	}
	config, err := pki.ClientTLS(files["agent-ca.crt"], pki.Pair{Cert: files["agent.crt"], Key: files["agent.key"]}, "")
	if err != nil {
		return nil, err
	}
	Reread(config, filepath.Join(dir, "pki/agent.crt"), filepath.Join(dir, "pki/agent.key"))
	return agent.NewClient(config, nil), nil
}

// EtcdTLS is for calls to etcd by what the files hold now. Whose authority it is
// they say: one that is not the cluster's own may come as several certificates.
func EtcdTLS(files component.EtcdFiles) (*tls.Config, error) {
	var data [3][]byte
	for i, path := range []string{files.CA, files.Cert, files.Key} {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot talk to etcd: %w", err)
		}
		data[i] = content
	}
	pair := pki.Pair{Cert: data[1], Key: data[2]}
	if files.External {
		return pki.ExternalEtcdTLS(data[0], pair)
	}
	return pki.EtcdClientTLS(data[0], pair)
}

// Reread makes a client's config read its certificate again from these files
// for each connection: the node renews them.
func Reread(config *tls.Config, certificate, key string) {
	config.Certificates = nil
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		return &pair, err
	}
}

// clientURL is where a node's member answers clients.
func clientURL(n cluster.Node) string { return component.ClientURL(n) }

// ReportLeft tells another server that the components of a removed one have
// stopped, so that its member can go.
func ReportLeft(ctx context.Context, agents *agent.Client, servers []cluster.Node, self string) error {
	others := agent.Servers{Client: agents, Nodes: servers, But: self, Patience: checkPatience}
	return others.Call(ctx, LeftPath, LeftReport{Name: self}, nil)
}
