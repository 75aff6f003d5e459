package kubeconfig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"kuorum/internal/cluster"
	"kuorum/internal/pki"
)

const (
	name   = "kuorum-one"
	server = "https://127.0.0.1:26443"
)

// ownConfig is the path of the kubeconfig that a new cluster's administrator
// gets.
func ownConfig(t *testing.T) string {
	t.Helper()
	set, err := pki.NewSet(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := set.AdminPair(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	data, err := pki.Kubeconfig(server, name, pair, set.Cluster.Pair().Cert)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "admin.conf")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const foreign = `apiVersion: v1
kind: Config
preferences: {}
current-context: work
clusters:
- {name: work, cluster: {server: "https://work.example:6443", certificate-authority: certs/ca.crt}}
users:
- {name: me, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: get-token, interactiveMode: Never}}}
contexts:
- {name: work, context: {cluster: work, user: me, namespace: mine}}
extensions:
- {name: note, extension: {any: thing}}
`

func userFile(t *testing.T, content string) File {
	t.Helper()
	k := File{Path: filepath.Join(t.TempDir(), "config"), UID: -1, GID: -1, Switch: true}
	if content != "" {
		if err := os.WriteFile(k.Path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestMergeAndRemoveKeepTheRest(t *testing.T) {
	own := ownConfig(t)
	k := userFile(t, foreign)
	before, err := clientcmd.Load([]byte(foreign))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Merge(own, name); err != nil {
		t.Fatal(err)
	}
	merged, err := clientcmd.LoadFromFile(k.Path)
	if err != nil {
		t.Fatal(err)
	}
	if merged.CurrentContext != name || merged.Clusters[name].Server != server {
		t.Errorf("the lab is not the current context: %q", merged.CurrentContext)
	}
	if _, err := clientcmd.NewDefaultClientConfig(*merged, nil).ClientConfig(); err != nil {
		t.Errorf("kubectl could not use it: %v", err)
	}
	info, err := os.Stat(k.Path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("it holds a key and has mode %v, %v", info.Mode(), err)
	}
	if err := k.Remove(name); err != nil {
		t.Fatal(err)
	}
	after, err := clientcmd.Load([]byte(read(t, k.Path)))
	if err != nil {
		t.Fatal(err)
	}
	before.CurrentContext = "" // ours was, and is gone
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("entries of others changed (-before +after):\n%s", diff)
	}
	if got := strings.Join(names(t, filepath.Dir(k.Path)), " "); got != "config" {
		t.Errorf("left beside it: %s", got)
	}
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestMergeWithoutSwitchAndTwice(t *testing.T) {
	own := ownConfig(t)
	k := userFile(t, foreign)
	k.Switch = false
	if err := k.Merge(own, name); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(k.Path)
	if err != nil || config.CurrentContext != "work" || config.Contexts[name] == nil {
		t.Errorf("got %q, %v", config.CurrentContext, err)
	}
	first, err := os.Stat(k.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Merge(own, name); err != nil {
		t.Fatal(err)
	}
	if second, err := os.Stat(k.Path); err != nil || !os.SameFile(first, second) {
		t.Errorf("merging again wrote the file anew: %v", err)
	}
	if err := k.Remove("other"); err != nil {
		t.Fatal(err)
	}
	if third, err := os.Stat(k.Path); err != nil || !os.SameFile(first, third) {
		t.Errorf("removing what is not there wrote the file anew: %v", err)
	}
}

// TestMergeIntoAnyFile: client-go reads the same before and after, but for what
// was merged.
func TestMergeIntoAnyFile(t *testing.T) {
	own := ownConfig(t)
	for what, text := range map[string]string{
		"empty":           " \n",
		"a comment":       "# mine\n",
		"null":            "null\n",
		"without lists":   "apiVersion: v1\nkind: Config\n",
		"empty lists":     "clusters: null\ncontexts: []\nusers:\ncurrent-context: \"\"\n",
		"JSON":            `{"kind":"Config","clusters":[{"name":"a","cluster":{"server":"https://a","insecure-skip-tls-verify":true}}],"users":[{"name":"a","user":{"token":"0123"}}]}`,
		"anchors":         "clusters:\n- {name: a, cluster: &a {server: 'https://a'}}\n- {name: b, cluster: *a}\n",
		"odd names":       "users:\n- {name: '0x1', user: {username: 'yes', password: '1e3'}}\n- {name: \"multi\\nline\", user: {token: \"a\\nb\\n\"}}\n",
		"one of the name": "clusters:\n- {name: kuorum-one, cluster: {server: 'https://old', proxy-url: 'http://old'}}\ncurrent-context: kuorum-one\n",
	} {
		t.Run(what, func(t *testing.T) {
			before, err := clientcmd.Load([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			k := userFile(t, text)
			if err := k.Merge(own, name); err != nil {
				t.Fatal(err)
			}
			merged, err := clientcmd.LoadFromFile(k.Path)
			if err != nil {
				t.Fatal(err)
			}
			wanted, err := clientcmd.LoadFromFile(own)
			if err != nil {
				t.Fatal(err)
			}
			ignore := cmpopts.IgnoreFields(api.Cluster{}, "LocationOfOrigin")
			if diff := cmp.Diff(wanted.Clusters[name], merged.Clusters[name], ignore); diff != "" {
				t.Errorf("the cluster (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wanted.AuthInfos[name], merged.AuthInfos[name], cmpopts.IgnoreFields(api.AuthInfo{}, "LocationOfOrigin")); diff != "" {
				t.Errorf("the user (-want +got):\n%s", diff)
			}
			if has, err := k.Has(name); err != nil || !has {
				t.Errorf("it has the context: %v, %v", has, err)
			}
			if current, err := k.Current(); err != nil || current != name || merged.CurrentContext != name {
				t.Errorf("current context %q, %q: %v", current, merged.CurrentContext, err)
			}
			if err := k.Remove(name); err != nil {
				t.Fatal(err)
			}
			after, err := clientcmd.Load([]byte(read(t, k.Path)))
			if err != nil {
				t.Fatal(err)
			}
			delete(before.Clusters, name)
			delete(before.AuthInfos, name)
			before.CurrentContext = ""
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("entries of others changed (-before +after):\n%s", diff)
			}
		})
	}
}

// TestCommentsStay, and what no version of kubectl has heard of.
func TestCommentsStay(t *testing.T) {
	const text = `# by hand
apiVersion: v1
kind: Config
clusters:
- cluster:
    server: https://work.example:6443 # do not touch
    of-the-future: [1, 2.50, 1000000]
  name: work
users: []
`
	k := userFile(t, text)
	if err := k.Merge(ownConfig(t), name); err != nil {
		t.Fatal(err)
	}
	if got := read(t, k.Path); !strings.HasPrefix(got, strings.TrimSuffix(text, "users: []\n")) {
		t.Errorf("got %s", got)
	}
	if err := k.Remove(name); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(text+"contexts: []\ncurrent-context: \"\"\n", read(t, k.Path)); diff != "" {
		t.Errorf("after it all (-want +got):\n%s", diff)
	}
}

func TestMergeOfHalfACluster(t *testing.T) {
	for _, text := range []string{
		"kind: Config\n",
		"contexts: [{name: x, context: {cluster: x, user: x}}]\ncurrent-context: x\n",
		"contexts: [{name: x, context: {}}]\ncurrent-context: x\n",
		"contexts: [{name: x}]\ncurrent-context: x\n",
	} {
		own := userFile(t, text)
		k := userFile(t, foreign)
		if err := k.Merge(own.Path, name); err == nil || !strings.Contains(err.Error(), "cannot use the cluster's kubeconfig") {
			t.Errorf("%q: %v", text, err)
		}
		if got := read(t, k.Path); got != foreign {
			t.Errorf("%q: the file became %s", text, got)
		}
	}
}

func TestMergeMakesTheFile(t *testing.T) {
	own := ownConfig(t)
	k := File{Path: filepath.Join(t.TempDir(), "home", ".kube", "config"), UID: -1, GID: -1, Switch: true}
	if err := k.Remove(name); err != nil {
		t.Errorf("a file that does not exist holds no lab: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(k.Path)); !errors.Is(err, os.ErrNotExist) {
		t.Error("removing made the directory")
	}
	if err := k.Merge(own, name); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Stat(filepath.Dir(k.Path))
	if err != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, %v", dir.Mode(), err)
	}
}

func TestMergeKeepsASymlink(t *testing.T) {
	own := ownConfig(t)
	k := userFile(t, foreign)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(k.Path, link); err != nil {
		t.Fatal(err)
	}
	real := k.Path
	k.Path = link
	if err := k.Merge(own, name); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(link); err != nil || target != real {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	if !strings.Contains(read(t, real), name) {
		t.Error("the file behind the link was not changed")
	}
}

func TestBrokenKubeconfigStaysAsItIs(t *testing.T) {
	own := ownConfig(t)
	for _, broken := range []string{
		"{ not: [yaml", "\x00\x01", "apiVersion: v1\nkind: Pod\nmetadata: 7\n", "clusters: 7\n", "users: [7]\n", "7\n",
		"apiVersion: v2\n", "users: [{name: a}, {name: a}]\n", "clusters: []\nclusters: []\n", "kind: Config\n---\nkind: Config\n", "clusters: *none\n",
	} {
		k := userFile(t, broken)
		errMerge, errRemove := k.Merge(own, name), k.Remove(name)
		if errMerge == nil || errRemove == nil || !strings.Contains(errMerge.Error(), "it is left as it is") {
			t.Errorf("%q: merge says %v, remove %v", broken, errMerge, errRemove)
		}
		if got := read(t, k.Path); got != broken {
			t.Errorf("%q became %q", broken, got)
		}
		if _, err := os.Stat(k.Path + ".lock"); err == nil {
			t.Errorf("%q: the lock was left", broken)
		}
	}
}

func TestLockedKubeconfig(t *testing.T) {
	own := ownConfig(t)
	k := userFile(t, foreign)
	if err := os.WriteFile(k.Path+".lock", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(k.Path+".lock", hour, hour); err != nil {
		t.Fatal(err)
	}
	problem, ok := errors.AsType[*cluster.Problem](k.Merge(own, name))
	if !ok || !strings.Contains(problem.Why, "for 1h0m") || !strings.Contains(problem.Do, "rm "+k.Path+".lock") {
		t.Errorf("got %+v", problem)
	}
	if read(t, k.Path) != foreign {
		t.Error("a locked file was changed")
	}
	if _, err := os.Stat(k.Path + ".lock"); err != nil {
		t.Errorf("the lock of another was removed: %v", err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	here, gone, other := filepath.Join(dir, "here"), filepath.Join(dir, "gone"), filepath.Join(dir, "other")
	for _, path := range []string{here, other} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sudo := map[string]string{"HOME": "/root", "SUDO_USER": "anna", "SUDO_UID": "1000", "SUDO_GID": "1001"}
	for _, tc := range []struct {
		name string
		env  map[string]string
		path string // "" is an error
		uid  int
		gid  int
	}{
		{"the home", map[string]string{"HOME": "/home/anna"}, "/home/anna/.kube/config", -1, -1},
		{"sudo", sudo, "/home/of/anna/.kube/config", 1000, 1001},
		{"root by sudo", map[string]string{"HOME": "/superuser", "SUDO_USER": "root"}, "/superuser/.kube/config", -1, -1},
		{"a user nobody knows", map[string]string{"SUDO_USER": "nobody-knows"}, "", 0, 0},
		{"half of sudo", map[string]string{"SUDO_USER": "anna", "SUDO_UID": "x"}, "", 0, 0},
		{"named", map[string]string{"HOME": "/h", "KUBECONFIG": gone}, gone, -1, -1},
		{"first that exists", map[string]string{"KUBECONFIG": gone + ":" + here + ":" + other}, here, -1, -1},
		{"else the last", map[string]string{"KUBECONFIG": gone + ":" + gone + "2"}, gone + "2", -1, -1},
		{"empty words", map[string]string{"HOME": "/h", "KUBECONFIG": "::"}, "/h/.kube/config", -1, -1},
		{"named under sudo", map[string]string{"KUBECONFIG": here, "SUDO_USER": "anna", "SUDO_UID": "1", "SUDO_GID": "2"}, here, 1, 2},
	} {
		home := func(user string) (string, error) {
			if user != "anna" {
				return "", errors.New("unknown user")
			}
			return "/home/of/anna", nil
		}
		k, err := Find(func(key string) string { return tc.env[key] }, home)
		if tc.path == "" {
			if err == nil {
				t.Errorf("%s: got %+v", tc.name, k)
			}
			continue
		}
		if err != nil || k.Path != tc.path || k.UID != tc.uid || k.GID != tc.gid || !k.Switch {
			t.Errorf("%s: got %+v, %v", tc.name, k, err)
		}
	}
}
