{{- define "name" -}}
{{- if not (regexMatch "^[a-z][a-z0-9-]*$" .Release.Name) }}
{{- fail (printf "the release's name %s also names a Service: let it begin with a letter, and hold no dot" .Release.Name) }}
{{- end }}
{{- $name := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- trunc 52 $name | trimSuffix "-" -}}
{{- end }}

{{- define "labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "metadata" -}}
metadata:
  name: {{ include "name" . }}
  namespace: {{ .Release.Namespace }}
  labels: {{- include "labels" . | nindent 4 }}
{{- end }}

{{/* What all pods of this release have, and no others. */}}
{{- define "selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "claim" -}}
{{ .Values.weights.existingClaim | default (printf "%s-weights" (include "name" .)) }}
{{- end }}

{{/* Whether only pods of one node may hold the claim. */}}
{{- define "alone" -}}
{{- if hasPrefix "ReadWriteOnce" .Values.weights.accessMode }}alone{{ end -}}
{{- end }}

{{- define "strategy" -}}
{{- if include "alone" . -}}
{type: Recreate}
{{- else -}}
{type: RollingUpdate, rollingUpdate: {{ toJson .Values.rollout }}}
{{- end }}
{{- end }}

{{/* Seconds that a request may take, and so an adapter to stop. */}}
{{- define "deadline" -}}
{{ .Values.adapter.settings.ADAPTER_DEADLINE_SECONDS | default 60 | float64 | ceil }}
{{- end }}

{{- define "image" -}}
{{- $image := .image -}}
{{- $name := empty .root.Values.imageRegistry | ternary $image.repository (printf "%s/%s" .root.Values.imageRegistry $image.repository) -}}
{{- empty $image.digest | ternary (printf "%s:%s" $name ($image.tag | default .root.Chart.AppVersion)) (printf "%s@%s" $name $image.digest) -}}
{{- end }}

{{/* Numbers as they were written: Helm holds them as floats, and would print 6.7108864e+07. */}}
{{- define "settings" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}}
{{- end }}
{{- end }}

{{/* Of the pods. An autoscaler of nodes would spare each node with a pod that has a folder on its disk. */}}
{{- define "annotations" -}}
{{- $ours := dict "kubectl.kubernetes.io/default-container" (ternary "kserve-container" "adapter" .Values.kserve.enabled) }}
{{- $_ := set $ours "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes" "triton-tmp" }}
{{- mergeOverwrite $ours .Values.podAnnotations | toYaml }}
{{- end }}

{{- define "hardened" -}}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- define "pod" -}}
{{- $deadline := include "deadline" . | int -}}
{{- $offline := or .Values.offline (hasPrefix "/" .Values.checkpoint) -}}
automountServiceAccountToken: false
enableServiceLinks: false  # a Service of the name `adapter` would become ADAPTER_PORT, which is a setting
terminationGracePeriodSeconds: {{ add .Values.drainSeconds $deadline 20 }}
securityContext:
  runAsNonRoot: true
  {{- with .Values.user }}
  runAsUser: {{ int64 . }}
  runAsGroup: {{ int64 . }}
  fsGroup: {{ int64 . }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
containers:
  - name: {{ ternary "kserve-container" "adapter" .Values.kserve.enabled }}
    image: {{ include "image" (dict "root" . "image" .Values.adapter.image) }}
    imagePullPolicy: {{ .Values.adapter.pullPolicy }}
    env:
      - {name: ADAPTER_HOST, value: "::"}  # IPv4 too
      - {name: ADAPTER_PORT, value: "8080"}  # Triton listens on 8000, 8001 and 8002 of the same pod
      - {name: ADAPTER_TRITON_URL, value: "127.0.0.1:8001"}
      {{- if .Values.apiKeySecret }}
      - {name: ADAPTER_API_KEY_FILE, value: /run/key/api_key}
      {{- end }}
      {{- include "settings" (merge (dict) .Values.env .Values.adapter.settings) | nindent 6 }}
    ports: [{name: http, containerPort: 8080}]
    startupProbe: {httpGet: {path: /health/live, port: 8080}, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 30}
    readinessProbe: {httpGet: {path: /health, port: 8080}, periodSeconds: 5, timeoutSeconds: 5}
    livenessProbe: {httpGet: {path: /health/live, port: 8080}, periodSeconds: 10, timeoutSeconds: 5}
    lifecycle: {preStop: {exec: {command: [sleep, "{{ .Values.drainSeconds }}"]}}}
    securityContext: {{- include "hardened" . | nindent 6 }}
    resources: {{- toYaml .Values.adapter.resources | nindent 6 }}
    volumeMounts:
      - {name: adapter-tmp, mountPath: /tmp}
      {{- if .Values.apiKeySecret }}
      - {name: key, mountPath: /run/key, readOnly: true}
      {{- end }}
  - name: triton
    image: {{ include "image" (dict "root" . "image" .Values.triton.image) }}
    imagePullPolicy: {{ .Values.triton.pullPolicy }}
    env:
      - {name: EMBED_CHECKPOINT, value: {{ .Values.checkpoint | quote }}}
      - {name: HF_HOME, value: /weights/huggingface}
      {{- if not .Values.gpu.count }}
      - {name: EMBED_DEVICE, value: cpu}
      {{- end }}
      {{- if $offline }}
      - {name: HF_HUB_OFFLINE, value: "1"}
      {{- end }}
      {{- with .Values.hubTokenSecret }}
      - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: HF_TOKEN}}}
      {{- end }}
      {{- with .Values.adapter.settings.ADAPTER_TRACES_URL }}
      - {name: TRITON_TRACES_URL, value: {{ . | quote }}}
      {{- end }}
      {{- include "settings" (merge (dict) .Values.env .Values.triton.settings) | nindent 6 }}
    ports: [{name: triton-metrics, containerPort: 8002}]
    # Ready with its first embedding. Then its watchdog ends it when it embeds no more, and the kubelet when all is frozen.
    # Of its ports gRPC's alone listens on IPv6 too.
    startupProbe:
      exec: {command: [python3, /opt/watchdog.py, check]}
      periodSeconds: 10
      timeoutSeconds: 65
      failureThreshold: {{ mul .Values.triton.startMinutes 6 }}
    livenessProbe: {grpc: {port: 8001}, periodSeconds: 10, timeoutSeconds: 10, failureThreshold: 6}
    lifecycle: {preStop: {exec: {command: [sleep, "{{ add .Values.drainSeconds $deadline 5 }}"]}}}  # it outlives its adapter
    securityContext: {{- include "hardened" . | nindent 6 }}
    resources:
      {{- $gpu := dict }}
      {{- if .Values.gpu.count }}
      {{- $gpu = dict "limits" (dict .Values.gpu.resource .Values.gpu.count) }}
      {{- end }}
      {{- merge $gpu (deepCopy .Values.triton.resources) | toYaml | nindent 6 }}
    volumeMounts:
      - {name: shm, mountPath: /dev/shm}
      - {name: triton-tmp, mountPath: /tmp}
      - {name: weights, mountPath: /weights{{ if $offline }}, readOnly: true{{ end }}}
volumes:
  - {name: adapter-tmp, emptyDir: {medium: Memory, sizeLimit: 256Mi}}
  - {name: triton-tmp, emptyDir: {}}  # kernels that torch compiles; from where programs may be loaded
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .Values.triton.sharedMemory }}}}
  - {name: weights, persistentVolumeClaim: {claimName: {{ include "claim" . | trim | quote }}{{ if $offline }}, readOnly: true{{ end }}}}
  {{- with .Values.apiKeySecret }}
  - {name: key, secret: {secretName: {{ . | quote }}, items: [{key: api_key, path: api_key}]}}
  {{- end }}
{{- range $name := list "imagePullSecrets" "tolerations" "topologySpreadConstraints" "nodeSelector" "affinity" "priorityClassName" "runtimeClassName" "serviceAccountName" }}
{{- with index $.Values $name }}
{{ $name }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
