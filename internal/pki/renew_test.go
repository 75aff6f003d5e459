package pki

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kuorum/internal/cluster"
)

// contents is a node's files as Renew wants them.
func contents(files map[string]File) map[string][]byte {
	have := map[string][]byte{}
	for path, f := range files {
		have[path] = f.Data
	}
	return have
}

func renew(t testing.TB, s *Set, spec *cluster.Spec, have map[string][]byte, now time.Time) []File {
	t.Helper()
	files, err := s.Renew(spec, spec.Spec.Nodes[0], have, now)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func paths(files []File) []string {
	var list []string
	for _, f := range files {
		list = append(list, f.Path)
	}
	return list
}

// leafPaths are the files of a server that have a life, or refer to one that has.
func leafPaths() []string {
	var list []string
	for _, path := range slices.Concat(workerPaths, serverPaths) {
		shared := strings.Contains(path, "ca.") || strings.Contains(path, "-ca.") || strings.Contains(path, "sa.")
		if !shared && !strings.Contains(path, "encryption") {
			list = append(list, path)
		}
	}
	slices.Sort(list)
	return list
}

// refers tells whether a file is a kubeconfig that holds nothing that ages.
func refers(path string) bool { return strings.HasSuffix(path, ".conf") && path != "admin.conf" }

// agedPaths are the files that change when everything has become old.
func agedPaths() []string { return slices.DeleteFunc(leafPaths(), refers) }

func TestFreshNodeNeedsNothing(t *testing.T) {
	for _, life := range []time.Duration{0, time.Minute, day, 20 * 365 * day} {
		s := newTestSet(t)
		s.LeafLife = life
		have := contents(nodeFiles(t, s, "cp1", testNow))
		for _, now := range []time.Time{testNow, testNow.Add(time.Second)} {
			if got := renew(t, s, testSpec(), have, now); got != nil {
				t.Errorf("life %s: a fresh node needs %v", life, paths(got))
			}
		}
	}
}

func TestRenewByAge(t *testing.T) {
	s := newTestSet(t)
	s.LeafLife = 30 * day
	have := contents(nodeFiles(t, s, "cp1", testNow.Add(day)))
	begin := testNow.Add(day)
	for name, test := range map[string]struct {
		now  time.Time
		want []string
	}{
		"before the clock was set back": {begin.Add(-backdateLong - time.Second), agedPaths()},
		"a slow clock":                  {begin.Add(-backdateLong + time.Second), nil},
		"middle":                        {begin.Add(15 * day), nil},
		"almost two thirds":             {begin.Add(20*day - 2*time.Second), nil},
		"two thirds":                    {begin.Add(20 * day), agedPaths()},
		"last second":                   {begin.Add(30*day - time.Second), agedPaths()},
		"long over":                     {begin.Add(300 * day), agedPaths()},
	} {
		t.Run(name, func(t *testing.T) {
			got := renew(t, s, testSpec(), have, test.now)
			if diff := cmp.Diff(test.want, paths(got)); diff != "" {
				t.Fatalf("renewed (-want +got):\n%s", diff)
			}
			after := maps.Clone(have)
			for _, f := range got {
				after[f.Path] = f.Data
			}
			if again := renew(t, s, testSpec(), after, test.now); again != nil {
				t.Errorf("what was renewed must be renewed again: %v", paths(again))
			}
		})
	}
}

// What is renewed is as it would be on a new node, and as secret.
func TestRenewedFiles(t *testing.T) {
	s := newTestSet(t)
	s.LeafLife = 12 * time.Hour
	fresh := nodeFiles(t, s, "cp1", testNow)
	got := renew(t, s, testSpec(), nil, testNow)
	if diff := cmp.Diff(leafPaths(), paths(got)); diff != "" {
		t.Fatalf("files (-want +got):\n%s", diff)
	}
	for _, f := range got {
		want := fresh[f.Path]
		if f.Mode != want.Mode || bytes.Equal(f.Data, want.Data) != refers(f.Path) {
			t.Errorf("%s has mode %o, want %o, or is the old one, or need not differ", f.Path, f.Mode, want.Mode)
		}
		old, made := certificates(t, want), certificates(t, f)
		for i, cert := range made {
			if diff := cmp.Diff(describe(old[i]), describe(cert)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", f.Path, diff)
			}
			if end := testNow.Add(12 * time.Hour).Truncate(time.Second); !cert.IsCA && !cert.NotAfter.Equal(end) {
				t.Errorf("%s ends at %s, want %s", f.Path, cert.NotAfter, end)
			}
		}
	}
	// The life of nodes' certificates is not that of persons'.
	for name, pair := range map[string]func(time.Time) (Pair, error){"admin": s.AdminPair, "endpoint": s.EndpointPair} {
		made, err := pair(testNow)
		if err != nil {
			t.Fatal(err)
		}
		if end := testNow.Add(365 * day).Truncate(time.Second); !mustParse(t, made.Cert).NotAfter.Equal(end) {
			t.Errorf("the certificate of %s ends at %s, want %s", name, mustParse(t, made.Cert).NotAfter, end)
		}
	}
	certs := newJoining(t).sign(t, s)
	if end := testNow.Add(12 * time.Hour).Truncate(time.Second); !mustParse(t, certs["pki/agent"]).NotAfter.Equal(end) {
		t.Error("a joining worker's certificates have another life")
	}
}

func TestRenewWhatIsDamaged(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	fresh := contents(nodeFiles(t, s, "cp1", testNow))
	foreign := contents(nodeFiles(t, other, "cp1", testNow))
	agent, admin := []string{"pki/agent.crt", "pki/agent.key"}, []string{"admin.conf"}
	kubeconfig := func(server, name string, ca []byte) []byte {
		pair, err := s.AdminPair(testNow)
		if err != nil {
			t.Fatal(err)
		}
		data, err := Kubeconfig(server, name, pair, ca)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	reissued := func(by *Authority, change func(*Request)) content {
		p, err := newPlan(testSpec(), testSpec().Spec.Nodes[0])
		if err != nil {
			t.Fatal(err)
		}
		items := p.items()
		req := items[slices.IndexFunc(items, func(i item) bool { return i.path == "pki/agent" })].req.lasting(testNow, 365*day)
		change(&req)
		pair, err := by.Issue(req)
		if err != nil {
			t.Fatal(err)
		}
		return content{"pki/agent.crt": pair.Cert, "pki/agent.key": pair.Key}
	}
	same := func(*Request) {}
	mine := s.Cluster.pair.Cert
	for name, test := range map[string]struct {
		change content
		want   []string
	}{
		"made anew alike":        {reissued(s.Agents, same), nil},
		"in another order":       {reissued(s.Agents, func(r *Request) { slices.Reverse(r.Names); slices.Reverse(r.IPs) }), nil},
		"no certificate":         {content{"pki/agent.crt": nil}, agent},
		"no key":                 {content{"pki/agent.key": nil}, agent},
		"torn certificate":       {content{"pki/agent.crt": fresh["pki/agent.crt"][:200]}, agent},
		"torn key":               {content{"pki/agent.key": fresh["pki/agent.key"][:100]}, agent},
		"key of another":         {content{"pki/agent.key": fresh["pki/kubelet.key"]}, agent},
		"other authority":        {reissued(s.Cluster, same), agent},
		"another cluster's":      {content{"pki/agent.crt": foreign["pki/agent.crt"], "pki/agent.key": foreign["pki/agent.key"]}, agent},
		"fewer names":            {reissued(s.Agents, func(r *Request) { r.Names = r.Names[:1] }), agent},
		"other address":          {reissued(s.Agents, func(r *Request) { r.IPs = r.IPs[:1] }), agent},
		"other organization":     {reissued(s.Agents, func(r *Request) { r.Organizations = []string{GroupAdmins} }), agent},
		"one more":               {reissued(s.Agents, func(r *Request) { r.Organizations = append(r.Organizations, "x") }), agent},
		"other user":             {reissued(s.Agents, func(r *Request) { r.CommonName = "x" }), agent},
		"fewer usages":           {reissued(s.Agents, func(r *Request) { r.Client = false }), agent},
		"two":                    {content{"pki/agent.key": nil, "admin.conf": nil}, append(slices.Clone(admin), agent...)},
		"no kubeconfig":          {content{"admin.conf": nil}, admin},
		"torn kubeconfig":        {content{"admin.conf": fresh["admin.conf"][:300]}, admin},
		"no YAML":                {content{"admin.conf": []byte("a: [")}, admin},
		"another user's":         {content{"admin.conf": fresh["scheduler.conf"]}, admin},
		"same kubeconfig":        {content{"admin.conf": kubeconfig(balancerURL, "kuorum-demo", mine)}, nil},
		"other server":           {content{"admin.conf": kubeconfig("https://127.0.0.1:1", "kuorum-demo", mine)}, admin},
		"other context":          {content{"admin.conf": kubeconfig(balancerURL, "x", mine)}, admin},
		"trusts others":          {content{"admin.conf": kubeconfig(balancerURL, "kuorum-demo", other.Cluster.pair.Cert)}, admin},
		"another cluster's conf": {content{"admin.conf": foreign["admin.conf"]}, admin},
		"authority's file":       {content{"pki/ca.crt": nil, "pki/ca.key": nil, "pki/sa.key": nil, "encryption.yaml": nil}, nil},
		"a file of others":       {content{"pki/x.crt": []byte("x")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			have := maps.Clone(fresh)
			maps.Copy(have, test.change)
			if diff := cmp.Diff(test.want, paths(renew(t, s, testSpec(), have, testNow))); diff != "" {
				t.Errorf("renewed (-want +got):\n%s", diff)
			}
		})
	}
}

type content = map[string][]byte

// A kubeconfig and the file that it refers to are damaged one by one: what is
// right of them stays as it is, if only the certificate is wrong.
func TestRenewWhatIsReferredTo(t *testing.T) {
	s, other := newTestSet(t), newTestSet(t)
	fresh := contents(nodeFiles(t, s, "cp1", testNow))
	foreign := contents(nodeFiles(t, other, "cp1", testNow))
	const conf, file = "scheduler.conf", "pki/clients/scheduler.pem"
	split := func(path string) (cert, key []byte) {
		at := bytes.Index(fresh[path], []byte("-----BEGIN PRIVATE KEY"))
		if at < 0 {
			t.Fatalf("%s has no key", path)
		}
		return fresh[path][:at], fresh[path][at:]
	}
	cert, key := split(file)
	_, otherKey := split("pki/clients/kubelet.pem")
	issued := func(by *Authority, user string, groups ...string) content {
		pair, err := by.Issue(client(user, groups...).lasting(testNow, 365*day))
		if err != nil {
			t.Fatal(err)
		}
		return content{file: slices.Concat(pair.Cert, pair.Key)}
	}
	whole := func() content {
		data, err := Kubeconfig(balancerURL, "kuorum-demo", Pair{Cert: cert, Key: key}, s.Cluster.pair.Cert)
		if err != nil {
			t.Fatal(err)
		}
		return content{conf: data, file: nil}
	}
	edited := func(from, to string) content {
		if !bytes.Contains(fresh[conf], []byte(from)) {
			t.Fatalf("%s does not say %q", conf, from)
		}
		return content{conf: bytes.ReplaceAll(fresh[conf], []byte(from), []byte(to))}
	}
	const scheduler = "system:kube-scheduler"
	both, only := []string{file, conf}, []string{file}
	for name, test := range map[string]struct {
		change content
		want   []string
	}{
		"made anew alike":     {issued(s.Cluster, scheduler), nil},
		"no file":             {content{file: nil}, only},
		"torn certificate":    {content{file: cert[:200]}, only},
		"torn key":            {content{file: slices.Concat(cert, key[:100])}, only},
		"torn in the middle":  {content{file: slices.Concat(cert[:200], key)}, only},
		"no key":              {content{file: cert}, only},
		"no certificate":      {content{file: key}, only},
		"turned round":        {content{file: slices.Concat(key, cert)}, only},
		"too much":            {content{file: slices.Concat(cert, key, cert)}, only},
		"no PEM":              {content{file: []byte("x")}, only},
		"key of another":      {content{file: slices.Concat(cert, otherKey)}, only},
		"another user's":      {content{file: fresh["pki/clients/kubelet.pem"]}, only},
		"another cluster's":   {content{file: foreign[file]}, only},
		"other authority":     {issued(s.Etcd, scheduler), only},
		"more rights":         {issued(s.Cluster, scheduler, groupMasters), only},
		"no kubeconfig":       {content{conf: nil}, both},
		"torn kubeconfig":     {content{conf: fresh[conf][:100]}, both},
		"neither":             {content{conf: nil, file: nil}, both},
		"holds all itself":    {whole(), both},
		"other server":        {edited("https://127.0.0.1:6443", "https://127.0.0.1:1"), both},
		"other file":          {edited(file, "pki/clients/kubelet.pem"), both},
		"other trust":         {edited("pki/ca.crt", "pki/agent-ca.crt"), both},
		"trusts everybody":    {edited("certificate-authority: pki/ca.crt", "insecure-skip-tls-verify: true"), both},
		"one user more":       {edited("users:\n", "users:\n- {name: x, user: {token: x}}\n"), both},
		"the kubelet's":       {content{conf: fresh["kubelet.conf"]}, both},
		"authority's file":    {content{"pki/ca.crt": nil}, nil},
		"a client of nobody":  {content{"pki/clients/x.pem": []byte("x")}, nil},
		"admin.conf's client": {content{"pki/clients/admin.pem": []byte("x")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			have := maps.Clone(fresh)
			maps.Copy(have, test.change)
			got := renew(t, s, testSpec(), have, testNow)
			if diff := cmp.Diff(test.want, paths(got)); diff != "" {
				t.Errorf("renewed (-want +got):\n%s", diff)
			}
			for _, f := range got {
				have[f.Path] = f.Data
			}
			if diff := cmp.Diff(string(fresh[conf]), string(have[conf])); diff != "" {
				t.Errorf("%s (-want +got):\n%s", conf, diff)
			}
			if again := renew(t, s, testSpec(), have, testNow); again != nil {
				t.Errorf("what was renewed must be renewed again: %v", paths(again))
			}
		})
	}
}

// A node that comes or moves changes what API servers are called, and no more.
func TestRenewFollowsTheSpec(t *testing.T) {
	s := newTestSet(t)
	have := contents(nodeFiles(t, s, "cp1", testNow))
	apiServer := []string{"pki/apiserver.crt", "pki/apiserver.key"}
	for name, test := range map[string]struct {
		change func(*cluster.Spec)
		want   []string
	}{
		"node added": {func(s *cluster.Spec) {
			s.Spec.Nodes = append(s.Spec.Nodes, cluster.Node{Name: "w2", Role: cluster.RoleWorker, Address: "198.18.0.22"})
		}, apiServer},
		"node removed":  {func(s *cluster.Spec) { s.Spec.Nodes = s.Spec.Nodes[:2] }, apiServer},
		"node moved":    {func(s *cluster.Spec) { s.Spec.Nodes[2].Address = "198.18.0.29" }, apiServer},
		"other order":   {func(s *cluster.Spec) { slices.Reverse(s.Spec.Nodes[1:]) }, nil},
		"other domain":  {func(s *cluster.Spec) { s.Spec.DNS.Domain = "demo.local" }, apiServer},
		"other Service": {func(s *cluster.Spec) { s.Spec.Network.Services = "10.97.0.0/16" }, apiServer},
		"moved itself": {func(s *cluster.Spec) { s.Spec.Nodes[0].Address = "198.18.0.19" }, []string{
			"agent.conf", "pki/agent.crt", "pki/agent.key", "pki/apiserver.crt", "pki/apiserver.key",
			"pki/clients/agent.pem", "pki/etcd/peer.crt", "pki/etcd/peer.key", "pki/etcd/server.crt", "pki/etcd/server.key",
			"pki/kubelet.crt", "pki/kubelet.key",
		}},
		// They look for it where it was, and there is nothing else to say.
		"was elsewhere": {func(s *cluster.Spec) { s.Spec.Nodes[0].Moved = cluster.Move{Times: 1, From: []string{"198.18.0.19"}} }, []string{
			"pki/agent.crt", "pki/agent.key", "pki/etcd/peer.crt", "pki/etcd/peer.key", "pki/etcd/server.crt", "pki/etcd/server.key",
		}},
		"another was elsewhere": {func(s *cluster.Spec) { s.Spec.Nodes[1].Moved = cluster.Move{Times: 1, From: []string{"198.18.0.19"}} }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			spec := testSpec()
			test.change(spec)
			if diff := cmp.Diff(test.want, paths(renew(t, s, spec, have, testNow))); diff != "" {
				t.Errorf("renewed (-want +got):\n%s", diff)
			}
		})
	}
}

// At the end of the authority's life there is nothing to gain by renewing.
func TestRenewAtTheAuthoritysEnd(t *testing.T) {
	s := newTestSet(t)
	end := s.Cluster.NotAfter()
	have := contents(nodeFiles(t, s, "cp1", end.Add(-30*day)))
	if got := renew(t, s, testSpec(), have, end.Add(-time.Second)); got != nil {
		t.Errorf("renewed without gain: %v", paths(got))
	}
	files, err := s.Renew(testSpec(), testSpec().Spec.Nodes[0], have, end)
	if !errors.Is(err, ErrExpired) || files != nil {
		t.Errorf("afterwards: %v, %v, want ErrExpired", paths(files), err)
	}
}

func TestRenewRefuses(t *testing.T) {
	s := newTestSet(t)
	for name, test := range map[string]struct {
		node cluster.Node
		want string
	}{
		"worker":       {testSpec().Spec.Nodes[2], "only a server can sign"},
		"unknown node": {cluster.Node{Name: "cp9", Role: cluster.RoleServer}, "no such node"},
	} {
		if files, err := s.Renew(testSpec(), test.node, nil, testNow); err == nil || files != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %d files and %v, want an error with %q", name, len(files), err, test.want)
		}
	}
	s.LeafLife = -time.Hour
	if _, err := s.Renew(testSpec(), testSpec().Spec.Nodes[0], nil, testNow); err == nil || !strings.Contains(err.Error(), "before it begins") {
		t.Errorf("a negative life: %v", err)
	}
}

// TestMadeOutTo: while a server moves, its certificates are good for both
// addresses, and then for the new one alone.
func TestMadeOutTo(t *testing.T) {
	s, spec := newTestSet(t), testSpec()
	old := spec.Spec.Nodes[0].Address
	have := contents(nodeFiles(t, s, "cp1", testNow))
	for _, step := range []struct {
		from      []string
		isOld, is bool
	}{{[]string{old}, true, true}, {nil, false, true}} {
		spec.Spec.Nodes[0].Address, spec.Spec.Nodes[0].Moved = "198.18.0.19", cluster.Move{Times: 1, From: step.from}
		for _, f := range renew(t, s, spec, have, testNow) {
			have[f.Path] = f.Data
		}
		for _, name := range []string{"pki/etcd/peer.crt", "pki/agent.crt"} {
			both := step.isOld && step.is
			if MadeOutTo(have[name], old, "198.18.0.19") != step.isOld || MadeOutTo(have[name], "198.18.0.19", old) != step.is || both && MadeOutTo(have[name], old) {
				t.Errorf("from %v: %s is made out to others", step.from, name)
			}
		}
	}
	if MadeOutTo(nil, old) || MadeOutTo([]byte("x"), old) || MadeOutTo(have["pki/etcd/peer.key"], old) {
		t.Error("what is no certificate is made out to somebody")
	}
}
